# SPDX-License-Identifier: GPL-2.0-only
"""A row's text and role in each kind of column.

Each function returns a `Cell` for a row and a width in cells; `fit` cuts it to that
width later.  Pure: no Textual, no colours; must not depend on which columns there
are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ipttrace.netfilter import TABLES
from ipttrace.trace.drops import explain
from ipttrace.trace.drops.where import UNSPECIFIED
from ipttrace.trace.row import Row
from ipttrace.trace.rules import table_name
from ipttrace.tui import cells
from ipttrace.tui.cells import VERDICT_MARKS, Cell, cell_len, duration, fit, fit_tail, verdict_cell

# The rail at the left edge, which joins the rows of a journey.
BEGINS: Final = "┌"  # the journey's first row
CONTINUES: Final = "│"  # the row above is of the same journey
RESUMES: Final = "├"  # an earlier row is of the same journey, with others in between
MARKED: Final = "◆"  # the user has marked this row

NETNS_LOOKS: Final = 10  # colours of namespaces, see app.tcss

_CALL: Final = (1 << 56) - 1  # a journey's number: its first call's, with the host's above
_ADDRESS: Final = re.compile("[0-9a-fA-F]*[.:][0-9a-fA-F.:]*")


@dataclass(frozen=True, slots=True)
class Context:
    """What a row's cells depend on besides the row."""

    previous: Row | None  # the row above
    netns: Mapping[tuple[int, int], str]  # names, safe for a terminal, by host and inode
    hosts: Sequence[str] = ()  # names, safe for a terminal, by number
    marked: bool = False  # by the user
    unresolved: str = ""  # accepted, but its next hop does not answer this: ARP or ND
    short_netns: Mapping[tuple[int, int], str] = field(default_factory=dict)  # see `short_names`
    netns_rank: int = 0  # of its namespace, in the order of their inodes


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(second))
    except (OverflowError, ValueError, OSError):
        return "??:??:??"


def entry_time(row: Row, width: int, context: Context) -> Cell:
    second, rest = divmod(row.time, 1_000_000_000)
    text = f"{_second(second)}.{rest // 1000:06d}"
    if width < 12:
        text = text[3:12]
    return text[:width], "same" if _continues(row, context) else "time"


def _continues(row: Row, context: Context) -> bool:
    return context.previous is not None and context.previous.journey == row.journey


def rail(row: Row, width: int, context: Context) -> Cell:
    if context.marked:
        return MARKED, "drop"
    if _continues(row, context):
        mark = CONTINUES
    elif row.call == row.journey & _CALL or row.station == "received":
        # A packet that a device received is named after its first table.
        mark = BEGINS
    else:
        mark = RESUMES
    # A hash: call numbers of neighbouring packets differ by round numbers.
    return mark, f"rail{(row.journey * 0x9E3779B1 >> 16) % 4}"


def host(row: Row, width: int, context: Context) -> Cell:
    known = row.host < len(context.hosts)
    name = context.hosts[row.host] if known else str(row.host)
    role = f"rail{row.host % 4}"
    if len(name) > width and _ADDRESS.fullmatch(name):
        return fit_tail(name, width), role
    return name, role


def netns(row: Row, width: int, context: Context) -> Cell:
    role = f"netns{context.netns_rank % NETNS_LOOKS}"
    name = context.netns.get((row.host, row.netns))
    if not name:
        return fit_tail(str(row.netns), min(width, 5)), role
    if cell_len(name) > width:
        name = context.short_netns.get((row.host, row.netns), name)
    return name, role


_FIRST_WORD: Final = re.compile("[^-_./:]*[-_./:]")


def short_names(names: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], str]:
    """What distinguishes names of namespaces: without the words that several begin with."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for key, name in names.items():
        if found := _FIRST_WORD.match(name):
            groups.setdefault(found[0], []).append(key)
    short = dict(names)
    for keys in groups.values():
        first, last = min(names[key] for key in keys), max(names[key] for key in keys)
        alike = 0  # characters with which all names of the group begin
        while alike < min(len(first), len(last)) and first[alike] == last[alike]:
            alike += 1
        end = max(first.rfind(mark, 0, alike) for mark in "-_./:") + 1
        if len(keys) > 1:
            short.update((key, names[key][end:] or names[key]) for key in keys)
    return short


def process(row: Row, width: int, context: Context) -> Cell:
    if row.comm is None:
        return ("-" if row.pid is None else str(row.pid)), "process"
    if width > 15 and row.pid is not None:
        pid = f" {row.pid}"
        return fit(row.comm, width - len(pid)).rstrip() + pid, "process"
    return row.comm, "process"


def devices(row: Row, width: int, context: Context) -> Cell:
    into, out = row.in_ or "", row.out or ""
    room = width - 1
    if into and out and cell_len(into) + cell_len(out) > room:
        half = room // 2
        into = fit(into, max(half, room - cell_len(out))).rstrip()
        out = fit(out, room - cell_len(into)).rstrip()
    return f"{into}→{out}", "device"


def proto(row: Row, width: int, context: Context) -> Cell:
    text = row.proto
    if width < 6:
        text = "ICMP6" if text == "ICMPv6" else text
    elif row.frag is not None:
        text = f"{text} frag"
    elif row.flags:
        text = f"{text} {row.flags}"
    elif row.icmp is not None:
        text = f"{text} {row.icmp}"
    return text, "proto"


def endpoints(row: Row, width: int, context: Context) -> Cell:
    role = "endpoints"
    above = context.previous
    if (
        above is not None
        and _continues(row, context)
        and (above.src, above.dst, above.sport, above.dport)
        == (row.src, row.dst, row.sport, row.dport)
    ):
        role = "same"
    return cells.endpoints(row.src, row.sport, row.dst, row.dport, width), role


_FAMILY_ROOM: Final = 8  # cells from which the family is worth cutting the name


def decided_by(row: Row) -> str:
    """What the column of chains shows: the chain; of a station the reason for a drop, or itself."""
    if row.station is None:
        return row.chain or ""
    if not row.drop:
        return row.station
    return row.reason if row.reason not in (None, *UNSPECIFIED) else row.place or "dropped"


def text_of(row: Row, netns: str | None) -> str:
    """The text of the rule; of a station, what it means."""
    return row.rule or "" if row.station is None else explain(row, netns)


def table(row: Row, width: int, context: Context) -> Cell:
    if row.station is not None:
        return "", "policy"
    name = table_name(row.tables, row.table)
    if cell_len(name) > width < _FAMILY_ROOM:
        name = row.table  # the addresses show the family
    return name, row.table if row.table in TABLES else "table"


def chain(row: Row, width: int, context: Context) -> Cell:
    if row.station is not None:
        return decided_by(row), "drop" if row.drop else "policy"
    return _unknown(row) if row.chain is None else row.chain, "chain"


def _unknown(row: Row) -> str:
    return "?" if row.partial else "-"


def rulenum(row: Row, width: int, context: Context) -> Cell:
    if row.station is not None:
        return "", "policy"
    if row.match == "policy":
        return ("policy" if width >= 6 else "pol"), "policy"
    if row.rulenum is None:
        return ("?" if row.chain is not None else _unknown(row)), "policy"
    if row.match == "return":
        return fit_tail(f"{row.rulenum}↩", width), "policy"
    return fit_tail(str(row.rulenum), width), "rulenum"


def unresolved(protocol: str) -> str:
    """The mark of an accepted row whose next hop does not answer: "✓ no ARP"."""
    return f"{VERDICT_MARKS['ACCEPT']} no {protocol}"


def verdict(row: Row, width: int, context: Context) -> Cell:
    if row.station is not None:
        return verdict_cell("DROP") if row.drop else ("", "policy")
    if row.verdict is None:
        return "  ?", "policy"
    if context.unresolved:
        return unresolved(context.unresolved), "lost"
    return verdict_cell(row.verdict)


def cost(row: Row, width: int, context: Context) -> Cell:
    if row.station is not None:
        return "", "cost"
    return duration(row.cost_ns), "cost"


def rule(row: Row, width: int, context: Context) -> Cell:
    return text_of(row, context.netns.get((row.host, row.netns))), "rule"
