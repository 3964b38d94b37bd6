# SPDX-License-Identifier: GPL-2.0-only
"""Rows as aligned columns for a terminal.

Rows stream, so a column starts at a typical width and grows with its texts up to a
maximum; longer texts are cut and end in an ellipsis (CSV and JSON lines cut nothing).
Every cell is escaped first and coloured afterwards.  Must not import textual or do
I/O.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from ipttrace.text import cut, escape, width
from ipttrace.trace.row import TABLE, Row
from ipttrace.trace.rules import table_name
from ipttrace.trace.store import Picked
from ipttrace.view.labels import LabelSource, labels_of
from ipttrace.view.parts import Part, format_lines, times
from ipttrace.view.segments import REMEMBERED, Memo
from ipttrace.view.stations import DROPPED, OF_TABLES, RED, STATIONS, outcome, station_text
from ipttrace.view.values import clock, clock_second, duration, path_text

# Below this many cells the path is omitted.
_PATH_ROOM: Final = 12
_PATH_CAP: Final = 400
_NAME_CAP: Final = 1024
# A terminal of at least this many cells shows the rule's text at the end of the line.
_TEXT_FROM: Final = 160
_TEXT_ROOM: Final = 20
# Columns omitted on narrow terminals, in this order, each if the others and so many
# cells of the path do not fit otherwise.
_LEFT_OUT: Final = (("COMM/PID", 26), ("NETNS", 26), ("IN→OUT", 0), ("COST", 0), ("PROTO", 0))

# Columns that begin a group: what a packet is, where it was, its cost, whose it was.
_GROUPS: Final = ("TABLE", "COST", "COMM/PID")

_RESET: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_DIM: Final = "\x1b[2m"
_VERDICT: Final = {"ACCEPT": "\x1b[32m", "DROP": RED}
_OTHER_VERDICT: Final = "\x1b[33m"


def colour_wanted(fd: int, environ: Mapping[str, str]) -> bool:
    """Is `fd` a terminal with colours, and does NO_COLOR (no-color.org) allow them?"""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return os.isatty(fd)


class _Column:
    """A column: a cell's key in a row, its text, and a cache of padded cells by key.

    `start`: initial width in cells; `cap`: the greatest; `depends`: the store's columns that
    the key depends on; `whole`: longer texts are not cut.
    """

    def __init__(
        self,
        title: str,
        start: int,
        cap: int,
        depends: tuple[str, ...],
        key: Callable[[Row], Any],
        text: Callable[[Any], str],
        *,
        right: bool = False,
        colour: Callable[[Any], str] | None = None,
        whole: bool = False,
    ) -> None:
        self.title = title
        self.width = max(start, len(title))
        self.depends = depends
        self.key = key
        self._cache: dict[Any, str] = {}
        self._cap = cap
        self._whole = whole
        self._text = text
        self._right = right
        self._colour = colour

    def heading(self) -> str:
        return self.title.rjust(self.width) if self._right else self.title.ljust(self.width)

    def narrow(self, width: int) -> None:
        """Goes back to an earlier width."""
        if width != self.width:
            self.width = width
            self._cache.clear()

    def cell(self, key: Any) -> str:
        """Returns the padded cell of `key`; a text wider than all before widens the column."""
        return self._cache.get(key) or self._make(key)

    def _make(self, key: Any) -> str:
        text = cut(escape(self._text(key)), _NAME_CAP if self._whole else self._cap)
        wide = min(width(text), self._cap)
        if wide > self.width:
            self.width = wide
            self._cache.clear()
        elif len(self._cache) >= REMEMBERED:
            self._cache.clear()
        fill = " " * (self.width - width(text))
        colour = self._colour(key) if self._colour else ""
        if colour:
            text = f"{colour}{text}{_RESET}"
        cell = fill + text if self._right else text + fill
        self._cache[key] = cell
        return cell


class _Cells:
    """The keys of a row in some columns; the text of the cells, at one state of the widths."""

    __slots__ = ("keys", "text", "widths")

    def __init__(self, keys: list[Any]) -> None:
        self.keys = keys
        self.text = ""
        self.widths = 0


class _Group:
    """Consecutive columns, whose cells are joined once for all rows that share them."""

    def __init__(self, columns: list[_Column]) -> None:
        self._columns = columns
        depends = tuple(dict.fromkeys(name for column in columns for name in column.depends))
        self._memo = Memo(depends, lambda row: _Cells([column.key(row) for column in columns]))

    def texts(self, picked: Picked) -> list[str]:
        """Returns the joined cells of these rows, which may widen the columns from row to row."""
        found = self._memo.of(picked)
        widths = self._widths()
        if {cells.widths for cells in found} == {widths}:
            return [cells.text for cells in found]
        texts = []
        for cells in found:
            if cells.widths != widths:
                zipped = zip(self._columns, cells.keys, strict=True)
                cells.text = " ".join([column.cell(key) for column, key in zipped])
                cells.widths = widths = self._widths()
            texts.append(cells.text)
        return texts

    def _widths(self) -> int:
        # Columns only ever become wider.
        return sum(column.width for column in self._columns)


class TextView:
    """A `View`.

    `names` may grow while the view is in use; a namespace without a name is shown by
    its number.  `columns`: the terminal's width in cells; the least important columns
    are omitted to fit it, the path is cut, and the terminal wraps what is still too
    long; a wide terminal also gets the rule's text.  None: all columns, no rule texts.
    """

    def __init__(
        self,
        names: LabelSource = None,
        *,
        columns: int | None = None,
        colour: bool = False,
        utc: bool = False,
        drops: bool = False,
    ) -> None:
        """`drops`: there are no rows of tables, and no columns for them."""
        self._labels = labels_of(names)
        self._terminal = columns
        self._colour = colour
        self._utc = utc
        self._drops = drops
        self._columns = self._fitting(columns)
        self._groups = [_Group(list(some)) for some in _groups(self._columns)]
        self._paths: dict[Any, str] = {}
        depends = (*TABLE["path"].columns, "partial")
        if self._texts:
            depends += TABLE["rule"].columns
        self._ends = Memo(depends, self._end)
        self._ends_used = self._used

    def header(self) -> str:
        line = " ".join(["TIME".ljust(15), *(column.heading() for column in self._columns)])
        if self._drops:
            line += " REASON AT PLACE  WHAT IT MEANS"
        elif self._path_fits(len(line)):
            line += " PATH  TEXT" if self._texts else " PATH"
        line = line.rstrip()
        return f"{_BOLD}{line}{_RESET}\n" if self._colour else f"{line}\n"

    def lines(self, rows: Iterable[Row]) -> str:
        return _joined(map(" ".join, map(self._cells, rows)))

    def picked(self, rows: Picked) -> str:
        if rows.column("what").any():
            return self.lines(rows.rows())
        before = [column.width for column in self._columns]
        groups = [group.texts(rows) for group in self._groups]
        if self._terminal is not None and before != [column.width for column in self._columns]:
            # What fits a line depends on the widths that the rows before it have left.
            for column, width in zip(self._columns, before, strict=True):
                column.narrow(width)
            return self.lines(rows.rows())
        if self._ends_used != self._used:
            self._ends.clear()
            self._ends_used = self._used
        form = f"{_DIM}%s.%06d{_RESET}" if self._colour else "%s.%06d"
        stamps = times(form, rows.column("time"), partial(clock_second, utc=self._utc), 1000)
        texts = [Part("%s", [some]) for some in (*groups, self._ends.of(rows))]
        return _joined(format_lines([stamps, *texts], " ", len(rows)))

    def _cells(self, row: Row) -> list[str]:
        cells = [column.cell(column.key(row)) for column in self._columns]
        return [self._stamp(row.time), *cells, self._end(row)]

    def _stamp(self, time: int) -> str:
        stamp = clock(time, self._utc)
        return f"{_DIM}{stamp}{_RESET}" if self._colour else stamp

    def _end(self, row: Row) -> str:
        """Returns what follows the columns: the path, and the rule's text if there is room."""
        if row.station is not None:
            netns = self._labels.name(row.host, row.netns)
            return station_text(row, netns, colour=self._colour)
        path = self._path(row) if len(row.path) > 1 or row.partial else ""
        return self._with_text(path, row.rule)

    @property
    def _texts(self) -> bool:
        return self._terminal is not None and self._terminal >= _TEXT_FROM

    def _with_text(self, path: str, rule: str | None) -> str:
        """Returns the path and, if there is room, the text of the rule that decided."""
        if not rule or not self._texts or self._terminal is None:
            return path
        if path:
            path += "  "
        room = self._terminal - self._used - 1 - width(path)
        if room < _TEXT_ROOM:
            return path
        text = cut(escape(rule), room)
        return f"{path}{_DIM}{text}{_RESET}" if self._colour else path + text

    @property
    def _used(self) -> int:
        """Cells of the terminal before the path."""
        return 15 + sum(column.width + 1 for column in self._columns)

    def _path(self, row: Row) -> str:
        key = (row.path, row.partial)
        text = self._paths.get(key)
        if text is None:
            if len(self._paths) >= REMEMBERED:
                self._paths.clear()
            text = cut(escape(path_text(*key)), _PATH_CAP)
            self._paths[key] = text
        if self._terminal is None:
            return text
        used = self._used
        return cut(text, self._terminal - used - 1) if self._path_fits(used) else ""

    def _path_fits(self, used: int) -> bool:
        return self._terminal is None or self._terminal - used - 1 >= _PATH_ROOM

    def _fitting(self, room: int | None) -> list[_Column]:
        """Returns the columns that fit a terminal of `room` cells; None: all."""
        columns = [one for one in self._all() if not self._drops or one.title not in OF_TABLES]
        # MATCH stays: without it, a policy looks like a rule that does not exist.
        for title, path in _LEFT_OUT:
            if room is None or 15 + sum(column.width + 1 for column in columns) + path <= room:
                break
            columns = [column for column in columns if column.title != title]
        return columns

    def _all(self) -> list[_Column]:
        colour = self._colour
        # Lines that no terminal wraps have names whole: a long one moves what follows.
        whole = self._terminal is None
        of = _depends
        return [
            _Column(
                "NETNS",
                10,
                20,
                ("host", "netns"),
                lambda row: (row.host, row.netns),
                self._netns_text,
            ),
            _Column("IN→OUT", 9, 33, of("in", "out"), lambda row: (row.in_, row.out), _devices),
            _Column(
                "PROTO",
                11,
                32,
                of("proto", "flags", "icmp", "frag"),
                lambda row: (row.proto, row.flags, row.icmp, bool(row.frag)),
                _proto,
            ),
            _Column(
                "SOURCE", 19, 48, of("src", "sport"), lambda row: (row.src, row.sport), _endpoint
            ),
            _Column("", 1, 1, (), lambda row: None, lambda key: "→"),
            _Column(
                "DESTINATION",
                19,
                48,
                of("dst", "dport"),
                lambda row: (row.dst, row.dport),
                _endpoint,
            ),
            _Column(
                "TABLE",
                6,
                32,
                ("tables", "table"),
                lambda row: (row.tables, row.table),
                _table,
                whole=whole,
            ),
            _Column("CHAIN", 11, 32, of("chain"), lambda row: row.chain, _plain, whole=whole),
            _Column("RULE", 4, 10, of("chain", "rulenum"), _number, _plain, right=True),
            _Column("MATCH", 6, 8, of("match"), lambda row: row.match, _plain),
            _Column(
                "VERDICT",
                7,
                12,
                of("verdict", "station"),
                outcome,
                _verdict,
                colour=_verdict_colour if colour else None,
            ),
            _Column("COST", 7, 12, of("cost_ns"), lambda row: row.cost_ns, duration, right=True),
            _Column(
                "COMM/PID",
                14,
                40,
                of("comm", "pid"),
                lambda row: (row.comm, row.pid),
                _process,
            ),
            *(
                [_Column("HOST", 8, 32, ("host",), lambda row: row.host, self._labels.host)]
                if self._labels.several
                else []
            ),
        ]

    def _netns_text(self, key: tuple[int, int]) -> str:
        return self._labels.name(*key) or str(key[1])


def _joined(found: Iterable[str]) -> str:
    return "\n".join([*(line.rstrip(" ") for line in found), ""])


def _depends(*fields: str) -> tuple[str, ...]:
    return tuple(name for field in fields for name in TABLE[field].columns)


def _groups(columns: list[_Column]) -> Iterator[list[_Column]]:
    """Cuts the columns where one begins that has little to do with those before it."""
    cuts = [at for at, column in enumerate(columns) if column.title in _GROUPS]
    return (columns[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True))


def _plain(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _table(key: tuple[int, str]) -> str:
    return table_name(*key) if key[1] else "-"


def _number(row: Row) -> int | str | None:
    """Returns `?` if the chain is known and the number of the rule is not."""
    return "?" if row.rulenum is None and row.chain is not None else row.rulenum


def _verdict(verdict: str | None) -> str:
    return "?" if verdict is None else _plain(verdict)


def _devices(key: tuple[str | None, str | None]) -> str:
    return f"{key[0] or '-'}→{key[1] or '-'}"


def _proto(key: tuple[str, str | None, str | None, bool]) -> str:
    proto, flags, icmp, fragment = key
    return " ".join(word for word in (proto, flags, icmp, "frag" if fragment else None) if word)


def _endpoint(key: tuple[str, int | None]) -> str:
    """Returns `address:port`, an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    address, port = key
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _process(key: tuple[str | None, int | None]) -> str:
    comm, pid = key
    return "-" if comm is None and pid is None else f"{_plain(comm)}/{_plain(pid)}"


def _verdict_colour(verdict: str | None) -> str:
    if verdict in STATIONS:
        return RED if verdict == DROPPED else ""
    return "" if verdict is None else _VERDICT.get(verdict, _OTHER_VERDICT)
