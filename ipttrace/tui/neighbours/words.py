# SPDX-License-Identifier: GPL-2.0-only
"""The text of the pane's section on neighbours: tables, devices and neighbours as lines.

Text in frames is already safe for a terminal.  Pure: must not import widgets.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from ipttrace.trace.neighbours import Device, Namespace, Neighbour, Table, TableView
from ipttrace.trace.neighbours.frames import STATS
from ipttrace.tui.cells import Cells, beside, fit, length
from ipttrace.tui.widgets.figures import span, sparkline

WIDE: Final = 96  # cells; from this width on, the two tables are side by side
LOW: Final = 36  # lines; below, the tables are shorter if they leave no room for neighbours
LEAST: Final = 8  # neighbours for which there must be room
ONE_LINE: Final = 76  # cells; from this width on, a neighbour has one line, not two
FULL: Final = 134  # cells; from this width on, a neighbour has all its fields

ROLES: Final = frozenset(
    {"title", "head", "text", "dim", "value", "spark", "ok", "warn", "full", "bar"}
    | {"good", "fair", "busy", "bad", "fixed", "lladdr"}
)

_FAMILY: Final = {4: "IPv4", 6: "IPv6"}
_SHORT: Final = ("lookups", "hits", "allocs", "res_failed", "forced_gc_runs", "table_fulls")
_TROUBLE: Final = frozenset({"res_failed", "forced_gc_runs", "table_fulls"})
LEVELS: Final = {
    "ok": ("ok", "ok"),
    "warn": ("WARNING", "warn"),
    "full": ("FULL", "full"),
}
_STATES: Final = {
    "REACHABLE": "good",
    "STALE": "fair",
    "DELAY": "busy",
    "PROBE": "busy",
    "INCOMPLETE": "bad",
    "FAILED": "bad",
    "PERMANENT": "fixed",
    "NOARP": "fixed",
    "NONE": "fair",
}
_BAD: Final = frozenset({"INCOMPLETE", "FAILED"})
_IFF: Final = ((0x1, "UP"), (0x8, "LOOPBACK"), (0x10, "POINTOPOINT"), (0x80, "NOARP"))
# A unit and the next smaller one, each with its size in s.
_SPANS: Final = (("m", 60, "s", 1), ("h", 3600, "m", 60), ("d", 86400, "h", 3600))
_COUNTS: Final = frozenset({"refcnt", "queue_len", "proxy_qlen", "queue_lenbytes"})


def number(value: float, width: int) -> str:
    """A count in at most `width` cells (5 or more)."""
    if len(text := f"{value:,.0f}") <= width:
        return text
    for unit in "kMGTPE":
        value /= 1000
        if value < 999.5:
            return f"{value:.{1 if value < 99.95 else 0}f}{unit}"
    return "many"


def rate(value: float | None) -> str:
    """A rate per second in at most 7 cells; "" for None."""
    if value is None:
        return ""
    return f"{value:.1f}/s" if 0 < value < 9.95 else f"{number(value, 5)}/s"


def duration(ms: int) -> str:
    """`ms` in its two largest units: 800ms, 1.5s, 1m30s, 3h51m."""
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = divmod(ms, 1000)
    if seconds < 60:
        return f"{seconds}.{rest // 100}s" if rest >= 100 else f"{seconds}s"
    unit, size, lesser, part = _SPANS[(seconds >= 3600) + (seconds >= 86400)]
    count, rest = divmod(seconds, size)
    return f"{count}{unit}{rest // part}{lesser}" if rest >= part else f"{count}{unit}"


def gauge(view: TableView, width: int) -> str:
    """The entries of a table as a bar up to gc_thresh3; the other two thresholds are marked."""
    *lower, most = view.table.thresholds
    most = max(most, 1)
    filled = min(width, -(-width * view.entries // most))
    marks = {width * threshold // most for threshold in lower}
    return "█" * filled + "".join("┊" if at in marks else "░" for at in range(filled, width))


def packed(
    pairs: Iterable[tuple[str, str]], width: int, indent: int = 2, marked: Container[str] = ()
) -> list[Cells]:
    """Names and values, as many per line as fit; values of the names in `marked` are warnings."""
    lines: list[Cells] = []
    used = width
    for name, value in pairs:
        size = len(name) + 1 + len(value)
        if used + 2 + size > width:
            lines.append([(" " * indent, "text")])
            used = indent
        else:
            lines[-1].append(("  ", "text"))
            used += 2
        lines[-1] += [(f"{name} ", "dim"), (value, "warn" if name in marked else "value")]
        used += size
    return lines


def _parameter(name: str, value: int) -> tuple[str, str]:
    if name in _COUNTS or name.endswith("probes"):
        return name, f"{value:,}"
    return name.removesuffix("_ms"), duration(value)


def _config(table: Table) -> list[tuple[str, str]]:
    pairs = [("gc_interval", duration(table.gc_interval))]
    for name, value in table.config.items():
        if name in ("last_flush", "last_rand"):
            pairs.append((name, f"{duration(value)} ago"))
        elif name in ("hash_rnd", "hash_mask"):
            pairs.append((name, f"0x{value:x}"))
        else:
            pairs.append((name, f"{value:,}"))
    return pairs


def _why(view: TableView, width: int) -> str:
    """What the level means, unless it is ok."""
    _, second, _ = view.table.thresholds
    short = width < 48
    if view.level == "full":
        return "new ones refused" if short else "new neighbours are refused: raise gc_thresh3"
    if view.level == "warn" and view.entries >= second:
        return "over gc_thresh2" if short else "over gc_thresh2: idle ones are removed"
    return "near gc_thresh3" if view.level == "warn" else ""


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f}%"


def _counter(view: TableView, name: str, width: int, column: int) -> Cells:
    total, now = view.table.stats.get(name), view.rate(name)
    if total is None:
        return [(fit(f"  {name}", width), "dim")]
    role = "warn" if name in _TROUBLE and now else "value"
    room = 6 if width < 48 else 14
    line = [
        (f"  {name:<{column}} ", "dim"),
        (f"{number(total, room):>{room}} ", "value"),
        (f"{rate(now):>7} ", role),
    ]
    left = width - length(line)
    if left >= 3:
        line.append((sparkline(view.history(name), min(left, 60)), "spark"))
    return line


def _head(view: TableView, width: int, low: bool = False) -> list[Cells]:
    """How full a table is, as numbers and as a gauge; `low`: without what the gauge marks."""
    table = view.table
    word, role = LEVELS[view.level]
    name = table.name if width >= 48 else table.name.removesuffix("_cache")
    head: Cells = [
        (f"{_FAMILY[table.family]} {name}  ", "head"),
        (f"{word}  ", role),
        (f"{view.entries:,} of {table.thresholds[2]:,}", "value"),
    ]
    marks = " · ".join(f"{threshold:,}" for threshold in table.thresholds)
    return [
        head,
        [(gauge(view, max(1, width)), "bar" if role == "ok" else role)],
        *([] if low else [[("  gc_thresh ", "dim"), (marks, "value")]]),
        *([[(f"  {why}", role)]] if (why := _why(view, width)) else []),
    ]


def _hit_ratio(view: TableView, column: int) -> Cells:
    now, ever = view.hit_ratio(), view.hit_ratio_ever()
    text = f"{_percent(now)} now, {_percent(ever)} ever"
    return [(f"  {'hit ratio':<{column}} ", "dim"), (text, "value")]


def table_lines(view: TableView, width: int, detail: bool, low: bool = False) -> list[Cells]:
    """A table: its gauge and counters; with `detail`, every field that the kernel reports.

    `low`: in few lines; a counter that means trouble still has its own line while it
    increases.
    """
    table = view.table
    lines = _head(view, width, low and not detail)
    names = [*STATS, *(name for name in table.stats if name not in STATS)] if detail else _SHORT
    column = max(len(name) for name in names)
    if low and not detail:
        rising = [name for name in names if name in _TROUBLE and view.rate(name)]
        lines += [_counter(view, name, width, column) for name in rising]
        still = ((name, table.stats.get(name, 0)) for name in _SHORT[3:] if name not in rising)
        return lines + packed(((name, number(value, 6)) for name, value in still), width)
    lines += [_counter(view, name, width, column) for name in names]
    lines.append(_hit_ratio(view, column))
    if detail:
        lines += packed(_config(table), width)
        lines.append([("  parameters of a new device", "dim")])
        lines += packed((_parameter(*pair) for pair in table.parms.items()), width, 4)
    return lines


def device_lines(device: Device, width: int) -> list[Cells]:
    """A device and its parameters."""
    flags = ",".join(word for bit, word in _IFF if device.flags & bit)
    about = " ".join(part for part in (device.lladdr, f"mtu {device.mtu}", flags) if part)
    if not device.index:
        about = "the kernel's own, for blackhole routes"
    lines: list[Cells] = [[(f"  {device.name}  ", "value"), (about, "dim")]]
    for family, parms in sorted(device.parms.items()):
        lines.append([(f"  {_FAMILY[family]}", "text")])
        lines += packed((_parameter(*pair) for pair in parms.items()), width, 4)
    return lines


def tables_beside(
    one: TableView, two: TableView, width: int, detail: bool, low: bool
) -> list[Cells]:
    """Two tables in two columns, each `width` cells wide."""
    left, right = (table_lines(view, width, detail, low) for view in (one, two))
    first, second = (len(_head(view, width, low and not detail)) for view in (one, two))
    if first != second:
        # Put the same counters on the same lines.
        (left if first < second else right).insert(min(first, second), [])
    return beside(left, right, width, "   ")


@lru_cache(maxsize=16384)
def _value(address: str) -> tuple[int, int]:
    found = ip_address(address)
    return found.version, int(found)


def _rank(one: Neighbour) -> int:
    if one.proxy:
        return 4
    return {"bad": 0, "fixed": 2}.get(_STATES.get(one.state, ""), 1) + (one.state == "NOARP")


def ordered(namespace: Namespace) -> list[Neighbour]:
    """The neighbours: unresolved ones first, permanent and proxy ones last; then by address."""
    return sorted(
        namespace.neighbours.values(), key=lambda one: (_rank(one), *_value(one.dst), one.dev)
    )


def about_neighbours(namespace: Namespace, shown: Sequence[Neighbour]) -> Cells:
    """The heading of the neighbours: how many, and how many are unresolved."""
    total = namespace.totals.get("neighbours", 0)
    bad = sum(one.state in _BAD for one in shown)
    count = f"{len(shown):,}" if total <= len(shown) else f"{len(shown):,} of {total:,}"
    line = [("Neighbours  ", "head"), (f"{count}  ", "value")]
    return [*line, (f"{bad:,} not resolved", "bad")] if bad else line


def _since(one: Neighbour, now: float) -> str:
    """Time since it was confirmed or, if it is unresolved, since that changed."""
    moment = one.updated if one.state in _BAD else one.confirmed
    return "" if moment is None or one.state in ("NOARP", "PERMANENT") else span(now - moment)


def _ages(one: Neighbour, now: float) -> str:
    return "/".join(
        "-" if moment is None else span(now - moment)
        for moment in (one.confirmed, one.used, one.updated)
    )


def titles(width: int) -> Cells:
    """The column titles of the neighbours."""
    if width < ONE_LINE:
        return [(fit("  address", width - 16) + fit(" state", 11) + "  age", "dim")]
    rest = f" {'state':<10} {'age':>4}  {'lladdr':<17} {'device':<9} "
    if width < FULL:
        return [(fit("  address", _room(width)) + rest + "vendor", "dim")]
    ages = "probes refs conf/used/upd   "
    return [(fit("  address", _room(width)) + rest + ages + "vendor, flags", "dim")]


def _room(width: int) -> int:
    """Cells for an address."""
    return min(41, width - (60 if width < FULL else 92))


def neighbour_lines(
    one: Neighbour, device: str, vendor: str, now: float, width: int
) -> list[Cells]:
    """A neighbour, in one line or, if `width` is small, two.  `now`: monotonic, in s."""
    role = _STATES.get(one.state, "fair")
    state = "PROXY" if one.proxy else one.state
    role = "fixed" if one.proxy else role
    mark = "✗ " if role == "bad" else "  "
    flags = " ".join(name for name in one.flag_names if name != "proxy")
    since = _since(one, now)
    if width < ONE_LINE:
        rest = "  ".join(part for part in (one.lladdr, device, vendor, flags) if part)
        return [
            [
                (mark, role),
                (fit(one.dst, width - 18), "text"),
                (f" {state:<10}", role),
                (f"{since:>5}", "value"),
            ],
            [(fit(f"    {rest}", width), "lladdr")],
        ]
    line = [
        (mark, role),
        (fit(one.dst, _room(width) - 2), "text"),
        (f" {state:<10} ", role),
        (f"{since:>4}  ", "value"),
        (fit(one.lladdr, 17) + " ", "lladdr"),
        (fit(device, 9) + " ", "text"),
    ]
    if width >= FULL:
        line.append((f"{one.probes:>6} {one.refs:>4} {_ages(one, now):<15} ", "dim"))
    return [[*line, ("  ".join(part for part in (vendor, flags) if part), "dim")]]
