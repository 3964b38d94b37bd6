# SPDX-License-Identifier: GPL-2.0-only
"""What commands that make copies of rules have in common: of what, and which packet."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ipttrace.cli import ssh
from ipttrace.cli.outcome import BadUsage, Failed

if TYPE_CHECKING:
    from ipttrace.whatif.packet.spec import Packet
    from ipttrace.whatif.snapshot.model import Ruleset, Snapshot


_RULES: Final = (
    "rules from FILE instead of this host's: the output of iptables-save,"
    " ip6tables-save, nft list ruleset or ipset save; may be repeated"
)


def add_sources(parser: argparse.ArgumentParser, rules: str = _RULES) -> None:
    """The options that say of what the copy is; `rules`: the help of --rules."""
    parser.add_argument(
        "--rules",
        action="append",
        metavar="FILE",
        help=rules,
    )
    parser.add_argument(
        "--network",
        metavar="FILE",
        help="devices, addresses, routes and settings from FILE, as ipttrace snapshot writes it",
    )
    parser.add_argument(
        "--netns",
        metavar="NAME",
        help="a copy of this network namespace, by name or by the pid of a process in it",
    )
    ssh.add_options(parser)


def check_sources(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Exits with bad usage if the options contradict each other."""
    ssh.check(parser, parsed, several=False)
    if parsed.network and (parsed.netns or parsed.ssh):
        parser.error("--network is instead of --netns and --ssh")


def read_packet(text: str) -> Packet:
    """Returns the packet that PACKET describes.  Raises BadUsage, WhatIfError."""
    from ipttrace.whatif.errors import PacketError
    from ipttrace.whatif.packet import words
    from ipttrace.whatif.packet.recorded import find

    try:
        found = words.parse(text)
    except PacketError as error:
        raise BadUsage(f"{error}\n{error.caret()}") from None
    return find(found) if isinstance(found, words.Place) else found


def read_snapshot(parsed: argparse.Namespace) -> Snapshot:
    """Returns the snapshot that the options name.  Raises WhatIfError."""
    from ipttrace.whatif.snapshot import files, here

    rules = parsed.rules is None
    if parsed.network:
        snapshot = files.read_network(parsed.network)
    elif parsed.ssh:
        program = parsed.remote_command or ["ipttrace"]
        snapshot = here.read_over_ssh(parsed.ssh[0], program, parsed.netns)
    else:
        snapshot = here.read(parsed.netns, rules=rules)
    if not rules:
        snapshot = replace(snapshot, rulesets=read_rules(parsed.rules))
    return snapshot


def read_rules(paths: Sequence[str]) -> tuple[Ruleset, ...]:
    """Returns the rules in files.  Raises WhatIfError."""
    from ipttrace.whatif.snapshot import files

    return tuple(one for path in paths for one in files.read_rules(path))


def write(text: str) -> None:
    """Writes an answer to stdout, with its error now."""
    with os.fdopen(os.dup(1), "wb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """What keeps an answer from being given becomes Failed."""
    from ipttrace.whatif.errors import WhatIfError

    try:
        yield
    except WhatIfError as error:
        raise Failed(str(error)) from None
    except BrokenPipeError:
        raise Failed("the reader of stdout is gone") from None
