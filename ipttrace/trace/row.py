# SPDX-License-Identifier: GPL-2.0-only
"""One traversal as a person reads it: the row.

The columnar store makes rows only for what is shown or written.  Names are
those of jsonl, csv, queries and docs alike.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.trace.rules.families import NFT

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
    """One rule hit on the way through a table."""

    chain: str
    rulenum: int  # 0: not known
    match: str  # rule, return, policy


@dataclass(frozen=True, slots=True)
class Row:
    """One traversal.  None: this engine cannot know, or it does not apply.

    All text is safe for a terminal (control characters are already escaped);
    it is not safe as Rich markup or as a spreadsheet cell: views see to that.
    """

    index: int  # sequence number in the store, never reused
    time: int  # ns since the epoch
    engine: str  # kernel, netlink
    skb: int | None
    netns: int
    cpu: int | None
    pid: int | None
    comm: str | None
    in_: str | None  # device name; None where there is none
    out: str | None
    family: int  # 4, 6; 3 of ARP, 7 of a bridge
    hook: str  # "": not known
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
    src: str  # "" where the header is cut off or lies, and so is dst
    sport: int | None
    dst: str
    dport: int | None
    flags: str | None  # TCP: "SYN,ACK"; None for others
    icmp: str | None  # "type/code"
    frag: str | None  # "id:offset+" (bytes; + when more follow); None: no fragment
    mark: int
    mac_src: str | None
    mac_dst: str | None
    ct_state: str | None  # NEW, ESTABLISHED, RELATED, UNTRACKED, …
    ct_orig_src: str | None
    ct_orig_sport: int | None
    ct_orig_dst: str | None
    ct_orig_dport: int | None
    # Beyond the published fields:
    call: int
    parent: int | None  # call from inside which this one was made
    journey: int  # the call with which this skb's journey began
    flow: int  # equal for both directions of a flow
    partial: bool  # some of its rule records were lost
    host: int = 0  # number of the trace among those that share a store
    ruleset: int = 0  # generation of all rules when it came; 0: not known
    tables: int = 0  # of nftables: NFPROTO_* of the table's family; 0: legacy iptables
    trace_id: int | None = None  # that nftables gave the packet, as nft monitor trace shows it

    @property
    def rules_family(self) -> int:
        """Which family's tables it was in, as `Rulesets` number them."""
        return NFT + self.tables if self.tables else self.family
