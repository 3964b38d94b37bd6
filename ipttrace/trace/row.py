# SPDX-License-Identifier: GPL-2.0-only
"""One traversal as shown to a person: the row.

The columnar store makes rows only for what is shown or written.  Field names are those
of JSON lines, CSV, queries and documentation.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.trace.rules import NFT

# In the order of CSV's columns.
FIELDS: Final = (
    "time",
    "engine",
    "skb",
    "netns",
    "cpu",
    "pid",
    "comm",
    "in",
    "out",
    "family",
    "hook",
    "table",
    "chain",
    "rulenum",
    "match",
    "path",
    "rule",
    "verdict",
    "cost_ns",
    "len",
    "proto",
    "src",
    "sport",
    "dst",
    "dport",
    "flags",
    "icmp",
    "frag",
    "mark",
    "mac_src",
    "mac_dst",
    "ct_state",
    "ct_orig_src",
    "ct_orig_sport",
    "ct_orig_dst",
    "ct_orig_dport",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One rule hit within a table."""

    chain: str
    rulenum: int  # 0: unknown
    match: str  # rule, return, policy


@dataclass(frozen=True, slots=True)
class Row:
    """One traversal.  None: the engine cannot know the value, or it does not apply.

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
    table: str
    chain: str | None
    rulenum: int | None
    match: str | None
    path: tuple[Step, ...]
    rule: str | None
    verdict: str | None
    cost_ns: int | None
    len: int
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
    ct_state: str | None  # NEW, ESTABLISHED, RELATED, UNTRACKED, …
    ct_orig_src: str | None
    ct_orig_sport: int | None
    ct_orig_dst: str | None
    ct_orig_dport: int | None
    # Not in FIELDS:
    call: int
    parent: int | None  # the call during which this one was made
    journey: int  # the first call of this skb's journey
    flow: int  # equal for both directions of a flow
    partial: bool  # rule records were lost
    host: int = 0  # the number of the trace, if several share a store
    ruleset: int = 0  # generation of the rules when the packet came; 0: unknown
    tables: int = 0  # nftables: NFPROTO_* of the table's family; 0: legacy iptables
    trace_id: int | None = None  # nftables' id of the packet, as in `nft monitor trace`

    @property
    def rules_family(self) -> int:
        """The family of its table: see `rules.families`."""
        return NFT + self.tables if self.tables else self.family
