# SPDX-License-Identifier: GPL-2.0-only
"""The text of the sections on reassembly and conntrack, as lines of cells.

Each has how full it is, counters with their rates, and, if packets were lost lately or
soon will be, one sentence on what to look at next.  Pure: must not import widgets.
"""

from __future__ import annotations

from typing import Final

from ipttrace.trace.tables import COUNTERS, IPV4, IPV6, TableHistory
from ipttrace.tui.cells import Cells, fold, length
from ipttrace.tui.neighbours.words import LEVELS, number, packed, rate

WIDE: Final = 120  # cells; from this width on, the two sections are side by side

_SHORT: Final = 5  # conntrack's counters that are shown without every field
_COLUMN: Final = 15  # cells: the longest name and a space
_NUMBER: Final = 11
_RATE: Final = 8
_NARROW: Final = 48  # cells; below, numbers are shortened
_SIDE_BY_SIDE: Final = 48  # cells; below, a line has the counter of one family only
_MOST_LINES: Final = 4  # of a sentence
_RANKS: Final = {"ok": 0, "warn": 1, "full": 2}
_SECONDS: Final = frozenset({"time", "nf_conntrack_frag6_timeout"})
_FAMILIES: Final = {IPV4: "IPv4", IPV6: "IPv6"}
_SYSCTLS: Final = {IPV4: "net.ipv4.ipfrag", IPV6: "net.ipv6.ip6frag"}

# What a counter counts.
_MEANINGS: Final = {
    "ReasmReqds": "fragments that came",
    "ReasmOKs": "packets put together",
    "ReasmFails": "failures, of any kind",
    "ReasmTimeout": "a fragment never came",
    "ReasmOverlaps": "fragments that overlapped",
    "drop": "dropped: table full, or no memory",
    "early_drop": "entries removed to make room",
    "insert_failed": "packets lost to a race for an entry",
    "invalid": "packets that fit no connection",
    "search_restart": "lookups that began again",
    "clash_resolve": "races that did no harm",
    "chaintoolong": "dropped: hash chain too long",
    "error": "packets too damaged to track",
    "insert": "entries added by userspace",
    "found": "tuples in use when one was chosen",
}


def reassembly_lines(
    four: TableHistory, six: TableHistory, width: int, detail: bool, low: bool
) -> list[Cells]:
    """The section on the reassembly of fragments, of both families.

    `low`: in few lines; `detail`: every value that the kernel reports.
    """
    known = [one for one in (four, six) if one.known]
    level = max((one.level for one in known), key=_RANKS.__getitem__, default="ok")
    if not known:
        return [[("Reassembly  ", "head"), ("not reported by this kernel", "dim")]]
    word, role = LEVELS[level]
    lines: list[Cells] = [[("Reassembly of fragments  ", "head"), (word, role)]]
    if low and not detail and width < _NARROW and level == "ok":
        return lines
    if low and not detail:
        for one in known:
            if one.table == IPV4 or any(one.values.get(name) for name in _counted(one)):
                lines += _low_family(one, width)
    else:
        lines += [_queues(one, width) for one in known]
        # Both families side by side, or one below the other.
        for some in [known] if width >= _SIDE_BY_SIDE else [[one] for one in known]:
            lines += _columns(some, width)
    for one in known:
        lines += _advice(one, reassembly_advice(one), width)
    if detail:
        for one in known:
            lines += _rest(one, width, _FAMILIES[one.table])
        if any(name.startswith("nf_conntrack_frag6") for name in six.values):
            text = "where rules use conntrack, it reassembles IPv6 itself, and only timeouts count"
            lines += [[(f"  {part}", "dim")] for part in fold(text, width - 2, _MOST_LINES)]
    return lines


def conntrack_lines(one: TableHistory, width: int, detail: bool, low: bool) -> list[Cells]:
    """The section on conntrack's table; `detail` and `low` as in `reassembly_lines`."""
    if not one.known:
        return [[("Conntrack  ", "head"), ("not loaded", "dim")]]
    word, role = LEVELS[one.level]
    used, limit = one.used, one.limit
    head: Cells = [("Conntrack  ", "head"), (f"{word}  ", role)]
    if used is not None:
        of = "" if limit is None else f" of {limit:,}"
        head.append((f"{used:,}{of}" + (" entries" if width >= _NARROW else ""), "value"))
    lines: list[Cells] = [head]
    if low and not detail and width < _NARROW and one.level == "ok":
        return lines
    if not low and used is not None and limit:
        lines.append([(_gauge(used, limit, width), "bar" if role == "ok" else role)])
    counters = _counted(one)
    if low and not detail:
        pairs = [_pair(one, name) for name in counters[:4]]
        lines += packed(pairs, width, marked=one.losing)
    else:
        names = counters if detail else counters[:_SHORT]
        lines += [_counter([one], name, width) for name in names]
    lines += _advice(one, conntrack_advice(one), width)
    return lines + (_rest(one, width, "") if detail else [])


def reassembly_advice(one: TableHistory) -> str:
    """What to look at next; "" if nothing is wrong."""
    family, sysctl = _FAMILIES[one.table], _SYSCTLS[one.table]
    used, limit, losing = one.used, one.limit, one.losing
    if used is not None and limit is not None and used >= limit:
        return f"{family}: no room, fragments are dropped. Raise {sysctl}_high_thresh"
    if "ReasmOverlaps" in losing:
        return f"{family}: overlapping fragments are dropped: a broken sender, or an attack"
    if "ReasmTimeout" in losing:
        return f"{family}: fragments never came. Look for loss, or a filter, on their way"
    if "ReasmFails" in losing:
        return f"{family}: fragments were rejected: malformed, or no room ({sysctl}_high_thresh)"
    if one.near:
        return f"{family}: nearly no room: packets wait for fragments. Raise {sysctl}_high_thresh"
    return ""


def conntrack_advice(one: TableHistory) -> str:
    """What to look at next; "" if nothing is wrong."""
    losing, used, limit = one.losing, one.used, one.limit
    full = used is not None and limit is not None and used >= limit
    if full or ("drop" in losing and one.near):
        return "full: new connections are dropped. Raise nf_conntrack_max; see conntrack -L"
    if "early_drop" in losing:
        return "entries without an answer are removed for new ones. Raise nf_conntrack_max"
    if "insert_failed" in losing:
        return "packets lost a race for an entry (often DNS), or SNAT found no free port"
    if "drop" in losing:
        return "packets were dropped: an entry could not be made. See dmesg for nf_conntrack"
    if one.near:
        return "nearly full: raise nf_conntrack_max, or see who opens so many: conntrack -L"
    return ""


def _advice(one: TableHistory, text: str, width: int) -> list[Cells]:
    role = "full" if one.level == "full" else "warn"
    return [[(f"  {part}", role)] for part in fold(text, max(1, width - 2), _MOST_LINES)]


def _counted(one: TableHistory) -> tuple[str, ...]:
    """The counters that the kernel reports."""
    return tuple(name for name in COUNTERS[one.table] if name in one.values)


def _queues(one: TableHistory, width: int) -> Cells:
    """How many packets wait, and the memory that they take."""
    queues, used, limit = one.values.get("queues"), one.used, one.limit
    waiting = "" if queues is None else f"{queues:,} waiting"
    if used is not None and queues is not None:
        waiting += ", "
    room = 14 if width >= _NARROW else 5
    memory = "" if used is None else number(used, room)
    if used is not None and limit is not None:
        memory += f" of {number(limit, room)}"
    memory += " bytes" if used is not None and width >= _NARROW else ""
    role = LEVELS[one.level][1] if one.near else "value"
    return [(f"  {_FAMILIES[one.table]}  ", "dim"), (waiting + memory, role)]


def _low_family(one: TableHistory, width: int) -> list[Cells]:
    """A family in a line, or few: its memory, and the packets that were lost."""
    queues, used, limit = one.values.get("queues"), one.used, one.limit
    pairs = [("waiting", "?" if queues is None else number(queues, 6))]
    if used is not None and limit is not None:
        pairs.append(("memory", f"{number(used, 5)} of {number(limit, 5)}"))
    pairs += [_pair(one, name) for name in ("ReasmTimeout", "ReasmFails")]
    if one.values.get("ReasmOverlaps"):
        pairs.append(_pair(one, "ReasmOverlaps"))
    first, *rest = pairs
    return packed(
        [(f"{_FAMILIES[one.table]}  {first[0]}", first[1]), *rest], width, marked=one.losing
    )


def _pair(one: TableHistory, name: str) -> tuple[str, str]:
    """A counter's name and value, with its rate if it grows."""
    value, now = one.values.get(name), one.rate(name)
    text = "?" if value is None else number(value, 6)
    return name, f"{text} {rate(now)}" if now else text


def _columns(known: list[TableHistory], width: int) -> list[Cells]:
    """The counters of one or two families, side by side."""
    titles: Cells = [(" " * (2 + _COLUMN), "dim")]
    titles += [
        (f"{_FAMILIES[one.table]:>{_number(width)}}" + " " * (_RATE + 1), "dim") for one in known
    ]
    names = [name for name in COUNTERS[IPV4] if any(name in one.values for one in known)]
    return [titles, *(_counter(known, name, width) for name in names)]


def _number(width: int) -> int:
    return _NUMBER if width >= _NARROW + 24 else 6


def _counter(tables: list[TableHistory], name: str, width: int) -> Cells:
    """A counter of each table with its rate and, if there is room, what it counts."""
    room = _number(width)
    line: Cells = [(f"  {name:<{_COLUMN}}", "dim")]
    for one in tables:
        value, now = one.values.get(name), one.rate(name)
        role = "warn" if name in one.losing else "value"
        line.append((f"{'' if value is None else number(value, room):>{room}} ", role))
        line.append((f"{rate(now):>{_RATE - 1}} ", role if now else "dim"))
    left = width - length(line)
    meaning = _MEANINGS.get(name, "")
    return [*line, (f" {meaning}", "dim")] if len(meaning) < left else line


def _rest(one: TableHistory, width: int, title: str) -> list[Cells]:
    """Every value that is not shown elsewhere, with the kernel's names."""
    shown = {*COUNTERS[one.table], "queues", "memory", "entries", "max"}
    pairs = [
        (name, f"{value:,}{'s' if name in _SECONDS else ''}")
        for name, value in one.values.items()
        if name not in shown
    ]
    if title and pairs:
        pairs[0] = (f"{title}  {pairs[0][0]}", pairs[0][1])
    return packed(pairs, width)


def _gauge(used: int, limit: int, width: int) -> str:
    """`used` as a bar up to `limit`; where it becomes a warning is marked."""
    width = max(1, width)
    filled = min(width, -(-width * used // max(limit, 1)))
    mark = width * 9 // 10
    return "█" * filled + "".join("┊" if at == mark else "░" for at in range(filled, width))
