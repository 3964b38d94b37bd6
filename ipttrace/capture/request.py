# SPDX-License-Identifier: GPL-2.0-only
"""The options that an agent is started with.  Must not import an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """The options of everything that traces; None where the engine has a default."""

    expr: str = ""
    engine: str = "auto"  # auto, kernel, netlink, bpf; none: drops alone
    netns: str | None = None  # a name, a pid, netns.ALL
    buffer: int | None = None  # bytes
    maxactive: int | None = None
    duration: float | None = None  # s
    ready_file: Path | None = None
    checked: bool = True  # frames with checksums: whenever kept or sent over a network
    max_rate: int | None = None  # rows/s
    stop_after: int | None = None  # rows
    from_rules: bool = False  # only packets that rules mark, from there on
    raw_addresses: bool = False  # the kernel's, of packets, sockets, conntrack entries
    drops: bool = True  # record drops where the host allows it
    stations: bool = False  # and the stations of packets between tables
    sockets: bool = False  # record stages of sockets
