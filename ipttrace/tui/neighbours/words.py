# SPDX-License-Identifier: GPL-2.0-only
"""The words of the neighbour pane: tables, devices and neighbours as lines of pieces.

A line is a list of (text, role); a role is what its colour depends on.  All
text is clean already.  Must not know widgets, nor draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len

from ipttrace.trace.neighbours import Device, Namespace, Neighbour, Table, TableView
from ipttrace.trace.neighbours.frames import STATS
from ipttrace.tui.cells import fit

Piece = tuple[str, str]
Line = list[Piece]

WIDE: Final = 96  # from here on the two tables stand side by side
LOW: Final = 36  # below that many lines the tables say less, so that neighbours are seen
ONE_LINE: Final = 76  # from here on a neighbour needs one line, not two
FULL: Final = 134  # from here on it has all its fields

ROLES: Final = frozenset(
    {"title", "head", "text", "dim", "value", "spark", "ok", "warn", "full", "bar"}
    | {"good", "fair", "busy", "bad", "fixed", "lladdr"}
)

_FAMILY: Final = {4: "IPv4", 6: "IPv6"}
_SHORT: Final = ("lookups", "hits", "allocs", "res_failed", "forced_gc_runs", "table_fulls")
_TROUBLE: Final = frozenset({"res_failed", "forced_gc_runs", "table_fulls"})
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_LEVELS: Final = {
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
# A unit and the one below it, in s.
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
    """Per second, in at most 7 cells."""
    if value is None:
        return ""
    return f"{value:.1f}/s" if 0 < value < 9.95 else f"{number(value, 5)}/s"


def duration(ms: int) -> str:
    """A span of time, in its two highest units."""
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = divmod(ms, 1000)
    if seconds < 60:
        return f"{seconds}.{rest // 100}s" if rest >= 100 else f"{seconds}s"
    unit, size, lesser, part = _SPANS[(seconds >= 3600) + (seconds >= 86400)]
    count, rest = divmod(seconds, size)
    return f"{count}{unit}{rest // part}{lesser}" if rest >= part else f"{count}{unit}"


def age(seconds: float) -> str:
    """How old, in at most 4 cells."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{min(999, int(seconds // size))}{unit}"
    return f"{max(0, int(seconds))}s"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The newest `width` values, scaled to the highest; a gap where there is none."""
    values = values[-width:] if width > 0 else ()
    top = max((value for value in values if value is not None), default=0)
    marks = (
        " " if value is None else _SPARKS[round(7 * value / top)] if top > 0 else _SPARKS[0]
        for value in values
    )
    return "".join(marks).rjust(max(width, 0))


def gauge(view: TableView, width: int) -> str:
    """Entries as a bar up to gc_thresh3, with the other two thresholds marked."""
    *lower, most = view.table.thresholds
    most = max(most, 1)
    filled = min(width, -(-width * view.entries // most))
    marks = {width * threshold // most for threshold in lower}
    return "█" * filled + "".join("┊" if at in marks else "░" for at in range(filled, width))


def _packed(pairs: Iterable[tuple[str, str]], width: int, indent: int = 2) -> list[Line]:
    """Names and values, as many to a line as there is room for."""
    lines: list[Line] = []
    used = width
    for name, value in pairs:
        size = len(name) + 1 + len(value)
        if used + 2 + size > width:
            lines.append([(" " * indent, "text")])
            used = indent
        else:
            lines[-1].append(("  ", "text"))
            used += 2
        lines[-1] += [(f"{name} ", "dim"), (value, "value")]
        used += size
    return lines


def _parm(name: str, value: int) -> tuple[str, str]:
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
    """What a level that is not ok means."""
    _, second, _ = view.table.thresholds
    short = width < 48
    if view.level == "full":
        return "new ones refused" if short else "new neighbours are refused: raise gc_thresh3"
    if view.level == "warn" and view.entries >= second:
        return "over gc_thresh2" if short else "over gc_thresh2: idle ones are thrown out"
    return "near gc_thresh3" if view.level == "warn" else ""


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f}%"


def _counter(view: TableView, name: str, width: int, column: int) -> Line:
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
    left = width - sum(len(text) for text, _ in line)
    if left >= 3:
        line.append((sparkline(view.history(name), min(left, 60)), "spark"))
    return line


def _head(view: TableView, width: int) -> list[Line]:
    """How full a table is, in words and as a gauge."""
    table = view.table
    word, role = _LEVELS[view.level]
    name = table.name if width >= 48 else table.name.removesuffix("_cache")
    head: Line = [
        (f"{_FAMILY[table.family]} {name}  ", "head"),
        (f"{word}  ", role),
        (f"{view.entries:,} of {table.thresholds[2]:,}", "value"),
    ]
    marks = " · ".join(f"{threshold:,}" for threshold in table.thresholds)
    return [
        head,
        [(gauge(view, max(1, width)), "bar" if role == "ok" else role)],
        [("  gc_thresh ", "dim"), (marks, "value")],
        *([[(f"  {why}", role)]] if (why := _why(view, width)) else []),
    ]


def _hit_ratio(view: TableView, column: int) -> Line:
    now, ever = view.hit_ratio(), view.hit_ratio_ever()
    text = f"{_percent(now)} now, {_percent(ever)} ever"
    return [(f"  {'hit ratio':<{column}} ", "dim"), (text, "value")]


def table_lines(view: TableView, width: int, detail: bool, low: bool = False) -> list[Line]:
    """A table: the gauge, counters; with `detail` all that the kernel tells.

    `low`: in few lines; a counter that speaks of trouble still has its own
    while it moves.
    """
    table = view.table
    lines = _head(view, width)
    names = [*STATS, *(name for name in table.stats if name not in STATS)] if detail else _SHORT
    column = max(len(name) for name in names)
    if low and not detail:
        moving = [name for name in names if name in _TROUBLE and view.rate(name)]
        lines += [_counter(view, name, width, column) for name in ("lookups", *moving)]
        still = ((name, table.stats.get(name, 0)) for name in _SHORT[3:] if name not in moving)
        return lines + _packed(((name, number(value, 6)) for name, value in still), width)
    lines += [_counter(view, name, width, column) for name in names]
    lines.append(_hit_ratio(view, column))
    if detail:
        lines += _packed(_config(table), width)
        lines.append([("  parameters of a new device", "dim")])
        lines += _packed((_parm(*pair) for pair in table.parms.items()), width, 4)
    return lines


def device_lines(device: Device, width: int) -> list[Line]:
    """A device and its parameters."""
    flags = ",".join(word for bit, word in _IFF if device.flags & bit)
    about = " ".join(part for part in (device.lladdr, f"mtu {device.mtu}", flags) if part)
    if not device.index:
        about = "the kernel's own, for routes that lead nowhere"
    lines: list[Line] = [[(f"  {device.name}  ", "value"), (about, "dim")]]
    for family, parms in sorted(device.parms.items()):
        lines.append([(f"  {_FAMILY[family]}", "text")])
        lines += _packed((_parm(*pair) for pair in parms.items()), width, 4)
    return lines


def beside(one: TableView, two: TableView, width: int, detail: bool, low: bool) -> list[Line]:
    """Two tables in two columns, each `width` cells wide."""
    left, right = (table_lines(view, width, detail, low) for view in (one, two))
    if len(_head(one, width)) != len(_head(two, width)):
        # The same counters on the same lines.
        (left if len(_head(one, width)) < len(_head(two, width)) else right).insert(3, [])
    return [
        [*cut(first or [], width), ("   ", "text"), *(second or [])]
        for first, second in zip_longest(left, right)
    ]


def cut(line: Line, width: int) -> Line:
    """The line in exactly `width` cells."""
    found: Line = []
    for text, role in line:
        size = cell_len(text)
        if size > width:
            return [*found, (fit(text, width), role)] if width > 0 else found
        found.append((text, role))
        width -= size
    return [*found, (" " * width, "text")]


@lru_cache(maxsize=16384)
def _value(address: str) -> tuple[int, int]:
    found = ip_address(address)
    return found.version, int(found)


def _rank(one: Neighbour) -> int:
    if one.proxy:
        return 4
    return {"bad": 0, "fixed": 2}.get(_STATES.get(one.state, ""), 1) + (one.state == "NOARP")


def ordered(namespace: Namespace) -> list[Neighbour]:
    """Those in trouble first, those that never change last; else by address."""
    return sorted(
        namespace.neighbours.values(), key=lambda one: (_rank(one), *_value(one.dst), one.dev)
    )


def about_neighbours(namespace: Namespace, shown: Sequence[Neighbour]) -> Line:
    """The heading over the neighbours."""
    total = namespace.totals.get("neighbours", 0)
    bad = sum(one.state in _BAD for one in shown)
    count = f"{len(shown):,}" if total <= len(shown) else f"{len(shown):,} of {total:,}"
    line = [("Neighbours  ", "head"), (f"{count}  ", "value")]
    return [*line, (f"{bad:,} not resolved", "bad")] if bad else line


def _since(one: Neighbour, now: float) -> str:
    """When it was confirmed; of one that is not, since when."""
    moment = one.updated if one.state in _BAD else one.confirmed
    return "" if moment is None or one.state in ("NOARP", "PERMANENT") else age(now - moment)


def _ages(one: Neighbour, now: float) -> str:
    return "/".join(
        "-" if moment is None else age(now - moment)
        for moment in (one.confirmed, one.used, one.updated)
    )


def titles(width: int) -> Line:
    """The column titles over the neighbours."""
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


def neighbour_lines(one: Neighbour, device: str, vendor: str, now: float, width: int) -> list[Line]:
    """A neighbour, in one line or, where it is narrow, two."""
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
