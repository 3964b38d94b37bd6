# SPDX-License-Identifier: GPL-2.0-only
"""A namespace that receives packets from outside, as bytes, and forwards or takes them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from ipttrace.lab.network.ns import call_in, run_in
from tests.lab import targets
from tests.lab.wire import lay_wires
from tests.vm.plain import Plain


@contextlib.contextmanager
def sockets(ns: str) -> Iterator[None]:
    """Receivers of all datagrams, so that no ICMP error answers them."""

    def open_all() -> None:
        for family, level, transparent in ((socket.AF_INET, 0, 19), (socket.AF_INET6, 41, 75)):
            for port in (targets.UNREAD, targets.LISTENER):
                one = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                one.setsockopt(level, transparent, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(("", port))

    with contextlib.ExitStack() as stack:
        call_in(ns, open_all)
        yield


@contextlib.contextmanager
def wired() -> Iterator[Plain]:
    """A namespace with wires whose neighbours need no ARP."""
    with Plain("ipt-wired") as plain, sockets(plain.name):
        lay_wires(
            lambda argv, text: run_in(plain.name, argv, text=text),
            "link set near arp off\nlink set out arp off\n",
        )
        yield plain
