# SPDX-License-Identifier: GPL-2.0-only
"""The sockets view: connections and listeners, with their stages, queues and processes.

Below each line are its stages with the time between them, why it came to nothing, and whom
the client had called.  Must not join stages: it shows a `Listing`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

from textual.binding import Binding, BindingType

from ipttrace.stream import record
from ipttrace.trace.query import from_socket
from ipttrace.trace.sockets import Line, Listing
from ipttrace.trace.sockets.words import BAD, GOOD, end_text, process_text
from ipttrace.tui.cells import (
    Cell,
    Cells,
    column,
    counted,
    duration,
    endpoints,
    fit_tail,
    fold,
    spread,
    title,
)
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FilterRequested, Notice, SocketsRequested
from ipttrace.tui.rows import filter_words
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import REVERSE, SortedLedger, fitting, used

SHOWN: Final = 500

# From left to right: title, width.
_COLUMNS: Final[dict[str, tuple[str, int]]] = {
    "last": ("ago", 4),
    "state": ("stage", 12),
    "took": ("took", 6),
    "queue": ("queue", 7),
    "syns": ("again", 5),
    "proto": ("proto", 5),
    "host": ("host", 10),
    "netns": ("netns", 10),
    "ends": ("client → server", 28),
    "process": ("process", 9),
}
_ALWAYS: Final = ("last", "state", "took", "queue", "ends", "process")
# What additional room is spent on, in this order: another column, or a column's new width.
_STEPS: Final[tuple[tuple[str, int], ...]] = (
    ("process", 16),
    ("syns", 5),
    ("ends", 37),
    ("host", 10),
    ("netns", 10),
    ("proto", 5),
    ("process", 30),
    ("ends", 45),
    ("netns", 16),
    ("ends", 60),
)
_LEFT: Final = ("state", "proto", "host", "netns", "ends", "process")
_NAMES: Final = {"last": "newest", "state": "stage", "took": "slowest", "queue": "accept queue"}
_INDENT: Final = 5
_MOST_LINES: Final = 3  # of a sentence

# The words of a time line.
_WORDS: Final = {
    record.CONNECTING: "connect",
    record.CONNECTED: "connected",
    record.SYN_TAKEN: "SYN",
    record.SYN_DROPPED: "SYN dropped",
    record.SYN_ACK_SENT: "SYN-ACK",
    record.ACK_DROPPED: "ACK dropped",
    record.ESTABLISHED: "ACK",
    record.ACCEPTED: "accept",
    record.FIRST_READ: "read",
}
_NOT_ASKED: Final = "  Sockets are not recorded: {sockets} records them from now on."
_NO_SOCKETS: Final = "  This recording has no stages of sockets (see ipttrace record --sockets)."
_EMPTY: Final = "  No socket yet: no process has listened, connected, accepted or read since."

Text = tuple[Hashable, int]
"""A line of text below a line of figures: its key, and its number."""


class SocketsView(SortedLedger):
    """The view."""

    SORTS = ("last", "took", "queue", "state")
    ASCENDING = ("state", "host", "netns", "process")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "filter", "Rows", key_display="⏎", tooltip="the rows of this connection"
        ),
        Binding(
            "s",
            "sort",
            "Sort",
            tooltip="the newest first, or by duration, accept queue, stage",
            id="sort",
        ),
        Binding(
            "b", "switch", "On/off", tooltip="record sockets from now on, or no longer",
            id="sockets",
        ),
        REVERSE,
    ]  # fmt: skip

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._listing = Listing()
        self._netns: Mapping[tuple[int, int], str] = {}
        self._hosts: Sequence[str] = ()
        self._version: Hashable = None
        self._recorded = False
        self._live = False
        self._lines: dict[Hashable, Line] = {}
        self._texts: dict[Hashable, list[Cells]] = {}
        self._columns: dict[str, int] = {}

    def show(
        self,
        listing: Listing,
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str] = (),
        *,
        recorded: bool,
        live: bool,
    ) -> None:
        """Show the listing; does nothing if nothing has changed.

        `netns`: names of namespaces by host and inode; `hosts`: names by number, if there are
        several; all safe for a terminal.  `recorded`: whether stages are; `live`: whether they
        can be.
        """
        version = (listing.version, dict(netns), tuple(hosts), recorded, live)
        if listing is self._listing and version == self._version:
            return
        self._listing, self._version = listing, version
        self._netns, self._hosts = netns, hosts
        self._recorded, self._live = recorded, live
        self.changed()

    def action_filter(self) -> None:
        line = self._lines.get(self.picked)
        if line is None:
            self.post_message(Notice("no connection under the cursor", error=True))
            return
        one = line.newest
        if line.ends:
            query = from_socket.by_ends(one.protocol_name, line.ends)
            (source, destination), *_ = line.ends
            words = filter_words.flow(*source, *destination)
        else:
            query = from_socket.by_port(one.protocol_name, one.local)
            words = f"to {end_text(one.local)}"
        self.post_message(FilterRequested(query, words, replace=True))

    def action_switch(self) -> None:
        self.post_message(SocketsRequested())

    # Lines.

    def refill(self) -> Sequence[Hashable]:
        listing, self._texts = self._listing, {}
        ascending = (self.sort in self.ASCENDING) != self.reversed
        top = listing.top(self.sort, SHOWN, ascending=ascending)
        self._lines = {line.key: line for line in top}
        self._columns = self._choose_columns()
        lines: list[Hashable] = []
        if not self._recorded or not top:
            lines.append(self._about_recording())
        for line in top:
            lines.append(line.key)
            self._texts[line.key] = self._below(line)
            lines += [(line.key, at) for at in range(len(self._texts[line.key]))]
        more = len(listing) - len(top) + listing.forgotten
        if more:
            lines.append(f"  and {more:,} more, of longer ago")
        return lines

    def _about_recording(self) -> str:
        if self._recorded:
            return _EMPTY
        return with_keys(_NOT_ASKED, chosen(self)) if self._live else _NO_SOCKETS

    def _below(self, line: Line) -> list[Cells]:
        """What is below a line: its stages, and sentences."""
        room = max(self.width - _INDENT, 20)
        found: list[Cells] = []
        if line.is_port:
            parts = [f"backlog {line.queue_most}"] if line.queue_most is not None else []
            parts += [f"{line.accepted:,} accepted"] if line.accepted else []
            parts += [f"{line.dropped:,} dropped"] if line.dropped else []
            found += [[(text, "dim")] for text in fold(", ".join(parts), room, 1)]
        else:
            found += _time_line(line, room)
        found += [[(text, "value")] for text in fold(line.why, room, _MOST_LINES)]
        found += [[(text, "dim")] for text in fold(_about(line), room, _MOST_LINES)]
        return found

    def pickable(self, key: Hashable) -> bool:
        return key in self._lines

    def below(self, key: Hashable) -> int:
        return len(self._texts.get(key, ()))

    def choose(self, key: Hashable) -> bool:
        """Puts the cursor on the line of `key`; False: it is not among those shown."""
        self.sort, self.reversed = "last", False
        self.fill()
        return self.go_to(key)

    # Columns.

    def _choose_columns(self) -> dict[str, int]:
        least = {name: _COLUMNS[name][1] for name in _ALWAYS}
        steps = [step for step in _STEPS if step[0] != "host" or len(self._hosts) > 1]
        chosen_widths = fitting(least, steps, self.width)
        # The last column gets the rest; where even the least does not fit, the ends give way.
        rest = self.width - used(chosen_widths)
        chosen_widths["process"] += max(rest, 0)
        chosen_widths["ends"] = max(9, chosen_widths["ends"] + min(rest, 0))
        return {name: chosen_widths[name] for name in _COLUMNS if name in chosen_widths}

    def heading(self) -> list[Cells]:
        ports = sum(line.is_port for line in self._lines.values())
        about = [counted(len(self._lines) - ports, "connection")]
        about += [counted(ports, "listener")] if ports else []
        by = with_keys("{sort} by", chosen(self))
        name = _NAMES.get(self.sort, self.sort)
        right = f"  {by} {name}{', reversed' if self.reversed else ''} "
        line = spread(f" Sockets: {', '.join(about)}{self.about}", right, self.width)
        titles = [
            title(
                _COLUMNS[name][0], width, self.mark if name == self.sort else "", name not in _LEFT
            )
            for name, width in self._columns.items()
        ]
        return [[(line, "title")], titles]

    def orders(self) -> Sequence[str]:
        unsorted = ("ends", "syns", "proto")
        return ["" if name in unsorted else name for name in self._columns]

    def cells(self, key: Hashable) -> Cells:
        line = self._lines.get(key)
        if line is not None:
            return [self._cell(name, width, line) for name, width in self._columns.items()]
        if isinstance(key, tuple) and len(key) == 2 and key[0] in self._texts:
            return [(" " * _INDENT, "value"), *self._texts[key[0]][int(key[1])]]
        return [(str(key), "dim")]

    def _cell(self, name: str, width: int, line: Line) -> Cell:
        one = line.newest
        if name == "last":
            return column(figures.span((self._listing.newest - one.time) / 1e9), width, "dim")
        if name == "state":
            bad = line.failed and not line.is_port
            role = "drop" if bad else "accept" if one.stage in GOOD else "text"
            return column(one.name, width, role, right=False)
        if name == "took":
            text = "" if line.took is None else duration(line.took)
            return column(text, width, "drop" if line.failed else "value")
        if name == "queue":
            return _queue(line, width)
        if name == "syns":
            return column(f"{line.syns:,}" if line.syns else "", width, "warn")
        if name == "proto":
            return column(one.protocol_name, width, "dim", right=False)
        if name == "host":
            known = line.host < len(self._hosts)
            text = self._hosts[line.host] if known else str(line.host)
            return column(text, width, "dim", right=False)
        if name == "netns":
            netns = self._netns.get((line.host, one.netns)) or fit_tail(str(one.netns), width)
            return column(netns, width, "dim", right=False)
        if name == "ends":
            return column(_ends(line, width), width, "text", right=False)
        process = line.process
        text = "" if process is None else f"{process.comm or '?'} {process.pid or ''}"
        return column(text, width, "chain", right=False)


def _queue(line: Line, width: int) -> Cell:
    """The accept queue and its backlog; one that is full stands out."""
    if line.queue is None or line.queue_most is None:
        return column("", width)
    full = line.queue > line.queue_most
    return column(f"{line.queue}/{line.queue_most}", width, "drop" if full else "value")


def _ends(line: Line, width: int) -> str:
    one = line.newest
    if one.remote is None:
        return end_text(one.local)
    (source, destination) = (one.remote, one.local) if one.server else (one.local, one.remote)
    return endpoints(*source, *destination, width)


def _time_line(line: Line, room: int) -> list[Cells]:
    """The stages in their order, with the time between two of them: on one line.

    Nothing if there is only the one that the line above names.
    """
    cells: Cells = []
    if len(line.stages) == 1 and not line.newest.repeated:
        return []
    for stage in sorted(line.stages.values(), key=lambda one: one.time):
        if cells:
            since = "" if stage.since is None else f" +{duration(stage.since)} "
            cells.append((since or " ", "dim"))
        role = "accept" if stage.stage in GOOD else "text"
        if stage.stage in BAD and not stage.is_allowed:
            role = "drop"
        times = ""
        if stage.repeated:
            times = f" ×{stage.repeated + 1} in {duration(stage.time - line.firsts[stage.stage])}"
        word = stage.name if stage.is_allowed else _WORDS.get(stage.stage, stage.name)
        cells.append((word + times, role))
    if sum(len(text) for text, _ in cells) > room:
        # The newest ones are of interest.
        while cells and sum(len(text) for text, _ in cells) + 2 > room:
            cells = cells[2:]
        cells.insert(0, ("… ", "dim"))
    return [cells] if cells else []


def _about(line: Line) -> str:
    """Whom the client has called, who answers, and where the process is."""
    one = line.newest
    parts = []
    if one.original is not None and one.original != one.local:
        parts.append(f"called as {end_text(one.original)}")
    if one.answers is not None and one.answers != one.remote:
        parts.append(f"answered by {end_text(one.answers)}")
    process = line.process
    if process is not None and (
        process.container or process.pod or process.unit or len(process.pids) > 1
    ):
        parts.append(process_text(process))
    return "; ".join(parts)
