# SPDX-License-Identifier: GPL-2.0-only
"""The JSON objects of the stream's frames, as the agent writes them.

Only writers may rely on these types: what a reader gets may come from a
forged file, so readers check each field (trace/session.py, trace/rules/frames.py,
trace/neighbours/frames.py, trace/tables/frames.py).  A field may be added, never renamed:
recordings are kept.
Each kind of frame is described in docs/events/.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

Level = Literal["info", "warn", "error"]


class Clock(TypedDict):
    """CLOCK_MONOTONIC and CLOCK_REALTIME of one moment, in ns."""

    mono: int
    wall: int


class Hello(TypedDict):
    """HELLO: where the stream comes from; the writer adds the record layout."""

    engine: str  # kernel, netlink, bpf, kernel+netlink, kernel+bpf; none: drops alone
    version: str  # of ipttrace
    kernel: str  # uname -r
    arch: str
    host: str
    cpus: int
    expr: str  # "": no filter
    netns: dict[str, str]  # names of network namespaces by inode
    only_netns: str | None  # the one that is traced; None: all that the engine can
    clock: Clock
    drops: NotRequired[bool]  # whether drops are recorded
    no_drops: NotRequired[str]  # why not
    stations: NotRequired[bool]  # whether stations are recorded too, to begin with
    sockets: NotRequired[bool]  # whether stages of sockets are recorded


class StationBooks(TypedDict):
    """The counters of stations: due = delivered + lost + missed, once all was read."""

    due: int  # taken by EXPR, as the programs have counted
    delivered: int
    lost: int  # no room in the ring
    missed: int  # the program could not run
    refused: int  # not taken by EXPR


class SocketBooks(TypedDict):
    """The counters of stages of sockets: due = delivered + lost + missed, once all was read."""

    due: int
    delivered: int
    lost: int  # no room in the ring
    missed: int  # the program could not run
    refused: int  # not taken by EXPR, and not due


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
    stations: NotRequired[StationBooks]
    sockets: NotRequired[SocketBooks]
    filter: NotRequired[str]  # what nftables checks of the filter (netlink engine)
    expr: NotRequired[str]


class End(Books):
    """END: the last books, and why the trace ended."""

    reason: str


class Note(TypedDict):
    """NOTE: one line for a person."""

    level: Level
    text: str


class Names(TypedDict):
    """NAMES: full names of tables and chains by those in records; see trace/store/names.py."""

    names: dict[str, str]
    netns: NotRequired[dict[str, str]]  # more names of network namespaces by inode


class Places(TypedDict, total=False):
    """PLACES: what the numbers in stations mean, each as text; see docs/events/places.md."""

    places: dict[str, str]  # "ip_rcv_finish_core+0x1d2" by place
    stacks: dict[str, list[str]]  # places from the innermost on, by stack
    reasons: dict[str, str]  # the kernel's names without SKB_DROP_REASON_, by reason
    owners: dict[str, Owner]  # by owner


class Owner(TypedDict):
    """The process that has a socket; of several, the first."""

    pid: int
    comm: str
    others: int  # further processes that have it


class Process(TypedDict, total=False):
    """A process; what is not known is absent."""

    pid: int  # in the initial namespace
    comm: str
    exe: str  # its executable, as it calls it
    uid: int
    pids: list[int]  # in the pid namespaces that it is in, from the initial one on
    runtime: str  # docker, podman, containerd, cri-o …
    container: str  # its id
    pod: str  # uid of the Kubernetes pod
    unit: str  # of systemd
    others: int  # further processes that have the socket
    # Of a call that a guard denies:
    call: str  # connect, accept, receive
    rule: int  # its number, from 1
    rule_text: str
    dry: bool  # it only would be denied


class Processes(TypedDict):
    """PROCESSES: by the number in `owner` of the socket records that follow."""

    processes: dict[str, Process]


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
    unknown: dict[str, list[int]]  # numbers of rules without a known text, by chain
    handles: dict[str, list[int]]  # of nftables' rules, in order, by chain


class ChainCounters(TypedDict):
    """[packets, bytes] of a chain's policy and of each of its rules; None: nothing counts."""

    policy: tuple[int, int] | None
    rules: Sequence[tuple[int, int] | None]


class Counters(TypedDict):
    """COUNTERS: what the kernel has counted in a table."""

    netns: int
    family: int | str
    table: str
    mono: int
    since: int
    chains: dict[str, ChainCounters]


class NeighbourTable(TypedDict):
    """A neighbour table of the kernel; times in ms, other names as in linux/neighbour.h."""

    family: int  # 4, 6
    name: str
    thresholds: list[int]  # gc_thresh1, 2, 3
    gc_interval: int
    config: dict[str, int]
    stats: dict[str, int]
    parms: dict[str, int]  # what a new device starts with


class Device(TypedDict):
    """A network device; `type`: ARPHRD_*, `parms` by IP version ("4", "6")."""

    index: int
    name: str
    flags: int
    type: int
    mtu: int
    lladdr: str | None
    parms: dict[str, dict[str, int]]


class Neighbour(TypedDict):
    """A neighbour; the last four, in ms ago and a count, are absent for a proxy."""

    family: int  # 4, 6
    dst: str
    dev: int
    state: int  # NUD_*
    flags: int  # NTF_*, and from bit 8 on NTF_EXT_*
    lladdr: str | None
    probes: int
    protocol: int  # RTPROT_*
    confirmed: NotRequired[int]
    used: NotRequired[int]
    updated: NotRequired[int]
    refs: NotRequired[int]


class Route(TypedDict):
    """A route; a hop is a device's index and a gateway."""

    family: int  # 4, 6
    dst: str  # "10.0.0.0/8"
    type: int  # RTN_*
    table: int  # RT_TABLE_*
    metric: int
    hops: list[tuple[int, str | None]]


class Neighbours(TypedDict, total=False):
    """NEIGHBOURS: neighbour tables and what is in them; see trace/neighbours/__init__.py."""

    mono: int
    netns: int
    name: str
    tables: list[NeighbourTable]
    devices: list[Device]
    devices_changed: list[Device]
    neighbours: list[Neighbour]
    neighbours_changed: list[Neighbour]
    neighbours_gone: list[tuple[int, str, int, bool]]
    routes: list[Route]
    totals: dict[str, int]
    gone: list[int]


class Tables(TypedDict, total=False):
    """TABLES: reassembly or conntrack of a namespace; see trace/tables/__init__.py."""

    mono: int
    since: int  # when the values were last seen to be as before, ns
    netns: int
    name: str
    table: Literal["ipv4", "ipv6", "conntrack"]
    values: dict[str, int] | None  # None: it is gone
    gone: list[int]


Message = Rules | Counters | Neighbours | Tables | Note
"""What a watch finds; see capture/watch.py."""
