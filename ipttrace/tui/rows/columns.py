# SPDX-License-Identifier: GPL-2.0-only
"""The columns that the list of rows may show: keys, titles, and what help says of each.

Must not choose columns: `layout` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.tui.cells import VERDICT_MARKS, Cell
from ipttrace.tui.rows import row_cells
from ipttrace.tui.rows.row_cells import BEGINS, CONTINUES, MARKED, RESUMES, Context

Draw = Callable[[Row, int, Context], Cell]


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of column."""

    key: str
    title: str
    help: str
    draw: Draw
    right: bool = False  # aligned to the right
    titles: Mapping[int, str] = field(default_factory=dict)  # other titles, by width


COLUMNS: Final = (
    Column(
        "rail",
        "",
        f"{BEGINS} a packet's first row, {CONTINUES} the same packet as in the row above,"
        f" {RESUMES} a packet with rows further up, {MARKED} a row that you marked",
        row_cells.rail,
    ),
    Column(
        "time",
        "time",
        "when the packet entered the table; local time (minutes:seconds if narrow)",
        row_cells.entry_time,
        titles={9: "min:sec"},
    ),
    Column("host", "host", "the host that traced it; shown if there are several", row_cells.host),
    Column(
        "netns",
        "netns",
        "network namespace: its name, or the last digits of its inode",
        row_cells.netns,
    ),
    Column(
        "process",
        "process",
        "the process on the CPU: the sender, or the one that the packet interrupted",
        row_cells.process,
    ),
    Column("devices", "in→out", "input device → output device", row_cells.devices),
    Column(
        "proto",
        "proto",
        "protocol; if wide also TCP flags, ICMP type/code or frag",
        row_cells.proto,
    ),
    Column(
        "endpoints",
        "source → destination",
        "addresses and ports as they were in this table; dim if the same as in the row above;"
        " if narrow, without the higher port or cut at the front",
        row_cells.endpoints,
    ),
    Column(
        "table",
        "table",
        "the table: raw, mangle, nat, filter, security; of nftables, with its family (inet t)"
        " if there is room",
        row_cells.table,
    ),
    Column(
        "chain",
        "chain",
        "the chain that decided; of a drop outside the tables, the kernel's reason or the function"
        " that dropped it; of a packet between two tables, what happened to it",
        row_cells.chain,
    ),
    Column(
        "rulenum",
        "#",
        "the number of the rule that decided, counted as by iptables -L --line-numbers;"
        " pol(icy): no rule decided, the chain's policy did; ?: unknown",
        row_cells.rulenum,
        right=True,
    ),
    Column(
        "verdict",
        "verdict",
        "  ".join(f"{mark} {name}" for name, mark in VERDICT_MARKS.items())
        + "  ? unknown"
        + "  ✓ no ARP, no ND: accepted, but the next hop does not answer now; as a query no_arp,"
        " no_nd",
        row_cells.verdict,
    ),
    Column(
        "cost",
        "cost",
        "time spent in the table, including the kernel's work to trace each rule",
        row_cells.cost,
        right=True,
    ),
    Column(
        "rule",
        "rule",
        "the text that the rule had when it decided; of a drop outside the tables, what it means",
        row_cells.rule,
    ),
)
