# SPDX-License-Identifier: GPL-2.0-only
"""Which columns a width has room for, and a row's text in each.

Pure: knows rows and cell widths, no Textual, no colours.  A cell comes with the
name of a role; the widget gives roles their colours.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from rich.cells import cell_len

from ipttrace.netfilter import TABLES
from ipttrace.trace.row import Row
from ipttrace.trace.rules.frames import table_name
from ipttrace.tui.cells import VERDICT_MARKS, VERDICT_ROLES, Cell, duration, fit, fit_tail

GAP: Final = 1
_CALL: Final = (1 << 56) - 1  # a journey's number is its first call's, below the host's
_ADDRESS: Final = re.compile("[0-9a-fA-F]*[.:][0-9a-fA-F.:]*")

# The journey's rail, at the left edge.
BEGINS: Final = "┌"  # the first row of a packet
GOES_ON: Final = "│"  # the same packet as the row above
COMES_BACK: Final = "├"  # a packet that began further up, after rows of others
MARKED: Final = "◆"  # a person has marked this row


@dataclass(frozen=True, slots=True)
class Context:
    """What a row is drawn with beside itself."""

    previous: Row | None  # the row above
    # Names, safe for a terminal: of namespaces by host and inode, of hosts by number.
    netns: Mapping[tuple[int, int], str]
    hosts: Sequence[str] = ()
    marked: bool = False  # by a person
    lost: bool = False  # accepted, but its next hop has no link-layer address


Draw = Callable[[Row, int, Context], Cell]


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of column."""

    key: str
    title: str
    help: str
    draw: Draw
    right: bool = False
    titles: Mapping[int, str] = field(default_factory=dict)  # other titles for narrow widths


@dataclass(frozen=True, slots=True)
class Placed:
    """A column and its width in cells."""

    column: Column
    width: int

    @property
    def title(self) -> str:
        """The title that fits."""
        return self.column.titles.get(self.width, self.column.title)


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(second))
    except (OverflowError, ValueError, OSError):
        return "??:??:??"


def _time(row: Row, width: int, context: Context) -> Cell:
    second, rest = divmod(row.time, 1_000_000_000)
    text = f"{_second(second)}.{rest // 1000:06d}"
    if width < 12:
        text = text[3:12]
    return text[:width], "same" if _goes_on(row, context) else "time"


def _goes_on(row: Row, context: Context) -> bool:
    return context.previous is not None and context.previous.journey == row.journey


def _rail(row: Row, width: int, context: Context) -> Cell:
    if context.marked:
        return MARKED, "drop"
    if _goes_on(row, context):
        mark = GOES_ON
    elif row.call == row.journey & _CALL:
        mark = BEGINS
    else:
        mark = COMES_BACK
    # Spread: call numbers of neighbouring packets differ by a round number.
    return mark, f"rail{(row.journey * 0x9E3779B1 >> 16) % 4}"


def _host(row: Row, width: int, context: Context) -> Cell:
    known = row.host < len(context.hosts)
    name = context.hosts[row.host] if known else str(row.host)
    role = f"rail{row.host % 4}"
    if len(name) > width and _ADDRESS.fullmatch(name):
        return fit_tail(name, width), role
    return name, role


def _netns(row: Row, width: int, context: Context) -> Cell:
    name = context.netns.get((row.host, row.netns))
    if name:
        return name, "netns"
    return fit_tail(str(row.netns), min(width, 5)), "netns"


def _process(row: Row, width: int, context: Context) -> Cell:
    if row.comm is None:
        return ("-" if row.pid is None else str(row.pid)), "process"
    if width > 15 and row.pid is not None:
        pid = f" {row.pid}"
        return fit(row.comm, width - len(pid)).rstrip() + pid, "process"
    return row.comm, "process"


def _devices(row: Row, width: int, context: Context) -> Cell:
    into, out = row.in_ or "", row.out or ""
    room = width - 1
    if into and out and cell_len(into) + cell_len(out) > room:
        half = room // 2
        into = fit(into, max(half, room - cell_len(out))).rstrip()
        out = fit(out, room - cell_len(into)).rstrip()
    return f"{into}→{out}", "device"


def _proto(row: Row, width: int, context: Context) -> Cell:
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


def _endpoint(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _endpoints(row: Row, width: int, context: Context) -> Cell:
    role = "endpoints"
    above = context.previous
    if (
        above is not None
        and _goes_on(row, context)
        and (above.src, above.dst, above.sport, above.dport)
        == (row.src, row.dst, row.sport, row.dport)
    ):
        role = "same"
    src, dst = _endpoint(row.src, row.sport), _endpoint(row.dst, row.dport)
    if len(src) + len(dst) + 3 <= width:
        return f"{src} → {dst}", role
    room = width - 1
    if len(src) + len(dst) > room and row.sport is not None and row.dport is not None:
        # The higher port is the client's, which tells the least.
        if row.sport > row.dport:
            src = row.src
        else:
            dst = row.dst
    if len(src) + len(dst) > room:
        # Each gets half, or more where the other needs less.
        src = fit_tail(src, max(room // 2, room - len(dst)))
        dst = fit_tail(dst, room - len(src))
    return f"{src}→{dst}", role


_FAMILY_ROOM: Final = 8  # cells from which on the family says more than all of the name


def _table(row: Row, width: int, context: Context) -> Cell:
    name = table_name(row.tables, row.table)
    if cell_len(name) > width < _FAMILY_ROOM:
        name = row.table  # the addresses tell of the family
    return name, row.table if row.table in TABLES else "table"


def _chain(row: Row, width: int, context: Context) -> Cell:
    return _unknown(row) if row.chain is None else row.chain, "chain"


def _unknown(row: Row) -> str:
    return "?" if row.partial else "-"


def _rulenum(row: Row, width: int, context: Context) -> Cell:
    if row.match == "policy":
        return ("policy" if width >= 6 else "pol"), "policy"
    if row.rulenum is None:
        return ("?" if row.chain is not None else _unknown(row)), "policy"
    if row.match == "return":
        return fit_tail(f"{row.rulenum}↩", width), "policy"
    return fit_tail(str(row.rulenum), width), "rulenum"


def _verdict(row: Row, width: int, context: Context) -> Cell:
    if row.verdict is None:
        return "  ?", "policy"
    if context.lost:
        return ("✓ no ARP" if row.family == 4 else "✓ no ND"), "lost"
    mark = VERDICT_MARKS.get(row.verdict, "?")
    return f"{mark} {row.verdict}", VERDICT_ROLES.get(row.verdict, "other")


def _cost(row: Row, width: int, context: Context) -> Cell:
    return duration(row.cost_ns), "cost"


def _rule(row: Row, width: int, context: Context) -> Cell:
    return row.rule or "", "rule"


COLUMNS: Final = (
    Column(
        "rail",
        "",
        f"{BEGINS} a packet begins, {GOES_ON} the same packet as above,"
        f" {COMES_BACK} a packet that began further up, {MARKED} a row that you marked",
        _rail,
    ),
    Column(
        "time",
        "time",
        "when the packet entered the table; local time (minutes:seconds where narrow)",
        _time,
        titles={9: "min:sec"},
    ),
    Column("host", "host", "where it was traced; shown when there are several hosts", _host),
    Column(
        "netns", "netns", "network namespace: its name, or the last digits of its inode", _netns
    ),
    Column(
        "process",
        "process",
        "what ran on the CPU then: the sender, or whom the packet interrupted",
        _process,
    ),
    Column("devices", "in→out", "device it came in by → device it leaves by", _devices),
    Column("proto", "proto", "protocol; TCP flags, ICMP type/code or frag where wide", _proto),
    Column(
        "endpoints",
        "source → destination",
        "addresses and ports as they were in this table, dim where the same as above;"
        " narrow: without the higher port, or cut at the front",
        _endpoints,
    ),
    Column(
        "table",
        "table",
        "the table: raw, mangle, nat, filter, security; of nftables with its family (inet t)"
        " where there is room",
        _table,
    ),
    Column("chain", "chain", "the chain that decided", _chain),
    Column(
        "rulenum",
        "#",
        "the rule that decided, as iptables -L --line-numbers or nft -a list counts;"
        " pol(icy): none matched, the chain's policy decided; ?: not told",
        _rulenum,
        right=True,
    ),
    Column(
        "verdict",
        "verdict",
        "  ".join(f"{mark} {name}" for name, mark in VERDICT_MARKS.items())
        + "  ? not told"
        + "  ✓ no ARP, no ND: accepted, but now the next hop's link-layer address is not known",
        _verdict,
    ),
    Column(
        "cost",
        "cost",
        "time spent in the table, the work of tracing each rule included",
        _cost,
        right=True,
    ),
    Column("rule", "rule", "the text of the rule that decided, as it was then", _rule),
)
_BY_KEY: Final = {column.key: column for column in COLUMNS}

# What is always there (it fits 79 cells), then what more room is spent on, in
# this order: a column's new width.  A step that does not fit ends the spending.
_LEAST: Final = {
    "rail": 1,
    "time": 9,
    "proto": 5,
    "endpoints": 28,
    "table": 6,
    "chain": 11,
    "rulenum": 4,
    "verdict": 8,
}
_HOST: Final = 6  # the least for the host, when there are several
_NARROWEST: Final = 15  # source and destination in fewer cells tell nothing
_STEPS: Final = (
    ("cost", 6),
    ("host", 9),
    ("time", 12),
    ("devices", 9),
    ("endpoints", 37),
    ("netns", 7),
    ("proto", 11),
    ("endpoints", 45),
    ("process", 15),
    ("netns", 10),
    ("rulenum", 6),
    ("devices", 13),
    ("table", 8),
    ("time", 15),
    ("rule", 30),
    ("chain", 18),
    ("netns", 12),
    ("devices", 19),
    ("host", 16),
    ("process", 22),
    ("endpoints", 61),
    ("rule", 60),
    ("chain", 28),
    ("endpoints", 97),
)
# Beside legacy tables those of nftables need their family, before anything else.
_FAMILY_STEP: Final = ("table", 9)
_UNTOLD: Final = ("process", "cost")  # of what came over netlink


def choose(width: int, hosts: bool = False, engine: str = "kernel") -> tuple[Placed, ...]:
    """The columns for a list of `width` cells, left to right.

    `hosts`: there are several; `engine`: kernel, netlink or kernel+netlink.
    Below the least width the addresses shrink, then protocol, time and table
    go; what still does not fit is cut off at the right edge by whoever draws.
    """

    def total(sizes: Mapping[str, int]) -> int:
        return sum(sizes.values()) + GAP * (len(sizes) - 1)

    sizes = {**_LEAST, "host": _HOST} if hosts else dict(_LEAST)
    for key, size in (_FAMILY_STEP, *_STEPS) if "netlink" in engine else _STEPS:
        if (key == "host" and not hosts) or (key in _UNTOLD and engine == "netlink"):
            continue
        wider = {**sizes, key: max(size, sizes.get(key, 0))}
        if total(wider) > width:
            break
        sizes = wider
    for key in ("proto", "time", "table"):
        if total(sizes) - sizes["endpoints"] + _NARROWEST > width:
            del sizes[key]
    spare = width - total(sizes)
    sizes["endpoints"] = min(97, max(9, sizes["endpoints"] + spare))
    return tuple(Placed(column, sizes[column.key]) for column in COLUMNS if column.key in sizes)


def cells(row: Row, columns: tuple[Placed, ...], context: Context) -> list[Cell]:
    """`row` as text of exact widths, gaps included, with the roles."""
    drawn: list[Cell] = []
    last = columns[-1]
    for placed in columns:
        text, role = placed.column.draw(row, placed.width, context)
        gap = "" if placed is last else " " * GAP
        drawn.append((fit(text, placed.width, placed.column.right) + gap, role))
    return drawn


def width_of(columns: tuple[Placed, ...]) -> int:
    """Cells that `cells` fills."""
    return sum(placed.width + GAP for placed in columns) - GAP


def titles(columns: tuple[Placed, ...]) -> str:
    """The line of titles over `columns`."""
    return "".join(
        fit(placed.title, placed.width, placed.column.right) + " " * GAP for placed in columns
    )


assert set(_LEAST) <= set(_BY_KEY)
assert {key for key, _ in _STEPS} <= set(_BY_KEY)
