# SPDX-License-Identifier: GPL-2.0-only
"""One traversal, or station between tables, as shown to a person: the row.

The columnar store makes rows only for what is shown or written.  Field names are those
of JSON lines, CSV, queries and documentation.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ipttrace.stream import record
from ipttrace.trace.rules import NFT


class Kind(Enum):
    """What the values of a field are, which decides how a view writes them."""

    TIME = auto()  # ns since the epoch
    NUMBER = auto()
    HEX = auto()  # a number that is written as 0x…
    TRACE_ID = auto()  # a number that is written as nft does: 8 hexadecimal digits
    TABLES = auto()  # NFPROTO_* of the table's family: see rules.tables_name
    YES = auto()  # true or false
    TEXT = auto()
    BLANK = auto()  # text that is "" if it is unknown
    PATH = auto()  # steps


@dataclass(frozen=True, slots=True)
class Field:
    """A field of rows.

    `columns`: those of the store that the value depends on, so that views need to make a
    text only once; "path" stands for the steps.  `netns_name` also depends on names that
    may become known at any time, and is no attribute of Row.
    """

    kind: Kind
    columns: tuple[str, ...]


_DECIDING: Final = ("chain", "rulenum", "match")
_IS_TRACKED: Final = "flags"
NETNS_NAME: Final = "netns_name"

# In the order of CSV's columns and of the keys in JSON lines.
TABLE: Final = {
    "time": Field(Kind.TIME, ("time",)),
    "engine": Field(Kind.TEXT, ("engine",)),
    "skb": Field(Kind.HEX, ("skb",)),
    "netns": Field(Kind.NUMBER, ("netns",)),
    "cpu": Field(Kind.NUMBER, ("cpu", "engine")),
    "pid": Field(Kind.NUMBER, ("pid", "engine")),
    "comm": Field(Kind.TEXT, ("comm", "engine")),
    "in": Field(Kind.TEXT, ("in",)),
    "out": Field(Kind.TEXT, ("out",)),
    "family": Field(Kind.NUMBER, ("family",)),
    "hook": Field(Kind.BLANK, ("hook",)),
    "table": Field(Kind.BLANK, ("table",)),
    "chain": Field(Kind.TEXT, ("chain",)),
    "rulenum": Field(Kind.NUMBER, ("rulenum", "chain")),
    "match": Field(Kind.TEXT, ("match", "chain")),
    "path": Field(Kind.PATH, ("path",)),
    "rule": Field(Kind.TEXT, ("host", "netns", "family", "tables", "table", "ruleset", *_DECIDING)),
    "verdict": Field(Kind.TEXT, ("verdict", "exit_flags")),
    "cost_ns": Field(Kind.NUMBER, ("cost", "engine", "what", "exit_flags")),
    "len": Field(Kind.NUMBER, ("len", "flags")),
    "proto": Field(Kind.BLANK, ("proto",)),
    "src": Field(Kind.BLANK, ("src", "version")),
    "sport": Field(Kind.NUMBER, ("sport", "known")),
    "dst": Field(Kind.BLANK, ("dst", "version")),
    "dport": Field(Kind.NUMBER, ("dport", "known")),
    "flags": Field(Kind.TEXT, ("tcp_flags", "known")),
    "icmp": Field(Kind.TEXT, ("icmp_type", "icmp_code", "known")),
    "frag": Field(Kind.TEXT, ("frag_id", "frag_off", "known")),
    "mark": Field(Kind.HEX, ("mark", "flags")),
    "mac_src": Field(Kind.TEXT, ("mac", "mac_len")),
    "mac_dst": Field(Kind.TEXT, ("mac", "mac_len")),
    "ct_state": Field(Kind.TEXT, ("ct_info", "ct_flags", _IS_TRACKED)),
    "ct_orig_src": Field(Kind.TEXT, ("ct_orig_src", "family", _IS_TRACKED)),
    "ct_orig_sport": Field(Kind.NUMBER, ("ct_orig_sport", "ct_proto", _IS_TRACKED)),
    "ct_orig_dst": Field(Kind.TEXT, ("ct_orig_dst", "family", _IS_TRACKED)),
    "ct_orig_dport": Field(Kind.NUMBER, ("ct_orig_dport", "ct_proto", _IS_TRACKED)),
    "tables": Field(Kind.TABLES, ("tables",)),
    "journey": Field(Kind.HEX, ("journey",)),
    "trace_id": Field(Kind.TRACE_ID, ("trace_id",)),
    NETNS_NAME: Field(Kind.TEXT, ("host", "netns")),
    "ct_mark": Field(Kind.HEX, ("ct_mark", "ct_flags", _IS_TRACKED)),
    "ct_zone": Field(Kind.NUMBER, ("ct_zone", _IS_TRACKED)),
    "physin": Field(Kind.TEXT, ("physin",)),
    "physout": Field(Kind.TEXT, ("physout",)),
    "drop": Field(Kind.YES, ("verdict", "exit_flags", "what")),
    "reason": Field(Kind.TEXT, ("reason",)),
    "place": Field(Kind.TEXT, ("place",)),
    "station": Field(Kind.TEXT, ("what",)),
    "owner_pid": Field(Kind.NUMBER, ("owner_pid",)),
    "owner_comm": Field(Kind.TEXT, ("owner_comm",)),
    "container": Field(Kind.TEXT, ("container",)),
}

FIELDS: Final = tuple(TABLE)


def attribute(field: str) -> str:
    """Returns the attribute of Row that has this field."""
    return "in_" if field == "in" else field


@dataclass(frozen=True, slots=True)
class Step:
    """One rule hit within a table."""

    chain: str
    rulenum: int  # 0: unknown
    match: str  # rule, return, policy


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that has a socket; of several the first, and how many `others` have it."""

    pid: int
    comm: str
    others: int

    def __str__(self) -> str:
        more = f" and {self.others} more" if self.others else ""
        return f"{self.comm or 'a process'} (pid {self.pid}{more})"


@dataclass(frozen=True, slots=True)
class Aside:
    """What only stations have, see record.STATION_DTYPE; `stack`: from the innermost place on."""

    stack: tuple[str, ...] = ()
    route_table: int = 0
    gateway: bytes = bytes(16)
    gateway_family: int = 0
    route_type: int = 0
    neighbour_state: int = 0
    flags: int = 0
    owner: Owner | None = None  # of the socket that got the packet

    @property
    def has_route(self) -> bool:
        """Whether the route's fields are valid."""
        return bool(self.flags & record.STATION_F_ROUTE)

    @property
    def has_neighbour(self) -> bool:
        """Whether the neighbour's state is valid."""
        return bool(self.flags & record.STATION_F_NEIGHBOUR)


# Nobody changes one: frozen=True would double the cost of making it.
@dataclass(slots=True, unsafe_hash=True)
class Row:
    """One traversal or station.  None: the engine cannot know the value, or it does not apply.

    All text is clean (`ipttrace.text`): safe on a terminal, but not as Rich markup or
    as a spreadsheet cell, which views take care of.
    """

    index: int  # sequence number in the store, never reused
    time: int  # ns since the epoch
    engine: str  # kernel, netlink
    skb: int | None
    netns: int
    cpu: int | None
    pid: int | None
    comm: str | None
    in_: str | None  # device name; None: no device
    out: str | None
    family: int  # 4, 6; 3: ARP, 7: bridge
    hook: str  # "": unknown
    table: str  # "" of a station
    chain: str | None
    rulenum: int | None
    match: str | None
    path: tuple[Step, ...]
    rule: str | None
    verdict: str | None
    cost_ns: int | None
    len: int | None
    proto: str  # TCP, UDP, ICMP, ICMPv6, GRE, ESP, AH, SCTP, … or the number; "": unreadable
    src: str  # "" if the header is cut off or inconsistent; dst likewise
    sport: int | None
    dst: str
    dport: int | None
    flags: str | None  # TCP: "SYN,ACK"; None: another protocol
    icmp: str | None  # "type/code"
    frag: str | None  # "id:offset+" (in bytes; +: more follow); None: not a fragment
    mark: int | None
    mac_src: str | None
    mac_dst: str | None
    ct_state: str | None  # NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED
    ct_orig_src: str | None
    ct_orig_sport: int | None
    ct_orig_dst: str | None
    ct_orig_dport: int | None
    # In FIELDS: journey here, tables and trace_id below, and all from ct_mark on.
    call: int
    parent: int | None  # the call during which this one was made
    journey: int  # the first call of this skb's journey
    flow: int  # equal for both directions of a flow
    partial: bool  # rule records were lost
    host: int = 0  # the number of the trace, if several share a store
    ruleset: int = 0  # generation of the rules when the packet came; 0: unknown
    tables: int = 0  # nftables: NFPROTO_* of the table's family; 0: legacy iptables
    trace_id: int | None = None  # nftables' id of the packet, as in `nft monitor trace`
    ct_mark: int | None = None
    ct_zone: int | None = None
    physin: str | None = None  # the port of a bridge by which it came in; None: not bridged
    physout: str | None = None
    drop: bool | None = None  # the packet died here; None: unknown
    reason: str | None = None  # the kernel's name of the reason for a drop
    place: str | None = None  # where in the kernel it was: "ip_rcv_finish_core+0x1d2"
    station: str | None = None  # dropped, received, …: see record.STATIONS; None: a traversal
    aside: Aside | None = None  # of a station, and of a rule's drop
    owner_pid: int | None = None  # the process that has the packet's socket; None: unknown
    owner_comm: str | None = None
    container: str | None = None  # id of the container that it is in

    @property
    def rules_family(self) -> int:
        """The family of its table: see `rules.families`."""
        return NFT + self.tables if self.tables else self.family
