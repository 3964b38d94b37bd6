# SPDX-License-Identifier: GPL-2.0-only
"""The JSON objects of the stream's frames, as the agent writes them.

Only writers may rely on these types: what a reader gets may come from a file that
somebody made up, so readers check each field (trace/session.py, trace/rules/frames.py,
trace/neighbours/frames.py).  A field may be added, never renamed: recordings are kept.
Each kind of frame is described in docs/events/.  Must not do I/O.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Level = Literal["info", "warn", "error"]


class Clock(TypedDict):
    """CLOCK_MONOTONIC and CLOCK_REALTIME of one moment, in ns."""

    mono: int
    wall: int


class Hello(TypedDict):
    """HELLO: where the stream comes from; the writer adds the record layout."""

    engine: str  # kernel, netlink, kernel+netlink
    version: str  # of ipttrace
    kernel: str  # uname -r
    arch: str
    host: str
    cpus: int
    expr: str  # "": no filter
    netns: dict[str, str]  # names of network namespaces by inode
    only_netns: str | None  # the one that is traced; None: all that the engine can
    clock: Clock


class Books(TypedDict):
    """BOOKS: the counters of one moment; lists are [entry, rule, exit] records."""

    engine: str
    state: Literal["armed", "disarmed"]
    calls: int  # runs of a packet through a table, filtered or not
    refused: int  # by the filter
    matched: int
    flipped: int  # packets whose nf_trace was set
    due: list[int]  # delivered + lost + missed, once all was read
    delivered: list[int]
    lost: list[int]
    missed: int
    followed: NotRequired[int]  # calls of packets that matched earlier (kernel engine)
    silenced: NotRequired[int]  # log calls suppressed (kernel engine)
    unfollowed: NotRequired[int]  # packets for which the table of followed ones had no room
    depth: NotRequired[int]  # deepest nesting of calls
    filter: NotRequired[str]  # what nftables checks of the filter (netlink engine)
    expr: NotRequired[str]


class End(Books):
    """END: the last books, and why the trace ended."""

    reason: str


class Note(TypedDict):
    """NOTE: one line for a person."""

    level: Level
    text: str


class ChainRules(TypedDict):
    """A chain's policy (None for a user-defined chain) and its rules' texts, in order."""

    policy: str | None
    rules: list[str]


class Rules(TypedDict, total=False):
    """RULES: a table's rules from a generation on; see trace/rules/rulesets.py."""

    netns: int
    family: int | str
    table: str
    backend: Literal["legacy", "iptables-nft", "nft"]
    since: int
    upto: int
    mono: int
    chains: dict[str, ChainRules]
    gone: bool
    of: Literal["nft"]


class ChainCounters(TypedDict):
    """[packets, bytes] of a chain's policy and of each of its rules."""

    policy: tuple[int, int] | None
    rules: list[tuple[int, int]]


class Counters(TypedDict):
    """COUNTERS: what the kernel has counted in a table."""

    netns: int
    family: int | str
    table: str
    mono: int
    since: int
    chains: dict[str, ChainCounters]


class Neighbours(TypedDict, total=False):
    """NEIGHBOURS: neighbour tables and what is in them; see trace/neighbours/__init__.py."""

    mono: int
    netns: int
    name: str
    tables: list[dict[str, object]]
    devices: list[dict[str, object]]
    devices_changed: list[dict[str, object]]
    neighbours: list[dict[str, object]]
    neighbours_changed: list[dict[str, object]]
    neighbours_gone: list[list[object]]
    routes: list[dict[str, object]]
    totals: dict[str, int]
    gone: list[int]


Message = Rules | Counters | Neighbours | Note
"""What a watch finds; see capture/watch.py."""
