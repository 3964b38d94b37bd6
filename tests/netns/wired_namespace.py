# SPDX-License-Identifier: GPL-2.0-only
"""A namespace that receives packets from outside, as bytes, and forwards or takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.lab.wire import ipv4, ipv6, lay_wires, tcp, transmit, udp
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace

__all__ = ["ipv4", "ipv6", "send", "tcp", "udp", "wired_namespace"]


@contextlib.contextmanager
def wired_namespace() -> Iterator[RulesetNamespace]:
    """A namespace with the wires of tests/lab/wire.py."""
    with ruleset_namespace() as one:
        lay_wires(lambda argv, text: one.run(*argv, input=text))
        yield one


def send(namespace: RulesetNamespace, packet: bytes) -> None:
    """Sends an IP packet from outside."""
    with namespace.enter():
        transmit([packet])
