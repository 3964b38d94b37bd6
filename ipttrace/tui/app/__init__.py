# SPDX-License-Identifier: GPL-2.0-only
"""The live screen: sources' streams as rows that a person can follow.

Live, remote and recorded are the same here: a `Source` gives bytes, a `Line`
makes frames of them in a thread of its own and feeds them to its trace, and
this app says when, and draws, all on the app's thread.  Frames come in as at
most one replaceable message a tick of 50 ms; feeding stops after `BUDGET`
seconds and goes on after keys have had their turn, so a flood or a long
recording never makes the screen deaf.  Why no lock and no second writer: see
`intake`.

What keys do is in `commands`.  Must not touch the kernel or parse bytes, and
must not write to stdout or stderr: the summary goes to the caller as `run()`'s
value.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Footer, Static

from ipttrace.text import clean
from ipttrace.trace import query
from ipttrace.trace.query import tree as query_tree
from ipttrace.trace.query.until import Until
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.tally import Tallies
from ipttrace.tui import situation as at
from ipttrace.tui.app import hangup
from ipttrace.tui.app.commands import Commands, own_bindings
from ipttrace.tui.app.files import Files
from ipttrace.tui.app.help import key_names
from ipttrace.tui.app.timing import TICK, Timing
from ipttrace.tui.detail.lines import Where
from ipttrace.tui.feed.feed import Line, add_up, engines
from ipttrace.tui.feed.source import Source
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.messages import Arrived, Notice, ViewChanged
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.rows.filter_bar import FilterBar, filter_pieces
from ipttrace.tui.rows.list import Rows
from ipttrace.tui.rows.looking import Looking
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.situation import Situation
from ipttrace.tui.totals import TotalsView
from ipttrace.tui.trace_view import TraceView
from ipttrace.tui.widgets.bar import Bar, about_pieces, status_pieces
from ipttrace.tui.widgets.prompt import Prompt

FRAME: Final = 0.05  # s between two pictures
BUDGET: Final = 0.015  # s of feeding before keys get their turn
BREATH: Final = 0.001  # s of that turn
STATUS: Final = 0.25  # s between two looks at the counters
GRACE: Final = 2.0  # s that a live source gets to send its last counts
WIDE: Final = 160  # cells from which on the neighbours stand beside the rows
UNREACHED: Final = ("FAILED", "INCOMPLETE")
SAID: Final = 4.0  # s that a word stays


class TraceApp(Files, Timing, Commands):
    """The screen over some sources.  `run()` returns the summary.

    That is `Trace.summary()`, added up, and `error`: the line that says why a
    stream broke, or None.
    """

    CSS_PATH = Path(__file__).with_name("app.tcss")  # absolute: a subclass may live elsewhere
    TITLE = "ipttrace"

    def __init__(
        self,
        source: Source | Sequence[Source],
        *,
        title: str,
        capacity: int = 1_000_000,
        grace: float = GRACE,
        until: query.Query | None = None,
        shown: query.Query | None = None,
    ) -> None:
        """`title` is for a person; `capacity` is rows held before the oldest go.

        The first row that `until` takes disarms; `shown` is the view's first filter.
        """
        super().__init__()
        sources = source if isinstance(source, Sequence) else [source]
        self.store = Store(capacity)
        self.lines = [
            Line(
                one,
                Trace(store=self.store, host=number),
                lambda: self.post_message(Arrived()),
            )
            for number, one in enumerate(sources)
        ]
        self.tallies = Tallies()
        self.looking = Looking(self.store, self.query_context)
        self._until = None if until is None else Until(until)
        self.exporting = False
        self.switcher = ContentSwitcher(id="views", initial="trace")
        self.side = NeighbourPane(id="side")
        self._side_wanted: bool | None = None  # None: by the screen's width
        if shown is not None:
            self.looking.write(shown.text)
        self._title = clean(title)
        self._grace = grace
        self.over = False
        self._stopping = False
        self._left = False
        self._stale = False  # fed since the last picture
        self._drawn = 0.0
        self._noticed = ("", False)
        self._said: tuple[str, bool, float] = ("", False, 0.0)
        self._read_notes = [0] * len(sources)
        self._named: dict[tuple[int, int], str] = {}
        self._hosts: list[str] = []
        self._engine = ""
        self._neighbours_known = 0
        self._progress: deque[str] = deque(maxlen=10)
        self._samples: deque[tuple[float, int]] = deque(maxlen=9)

    # Life.

    def compose(self) -> ComposeResult:
        yield Bar(id="about")
        # In the place of the line above, so that nothing below it moves.
        yield Static(id="notice", markup=False)
        yield FilterBar(id="filter")
        yield Prompt(self.focus_view, id="prompt")
        with Horizontal(id="middle"):
            with self.switcher:
                yield TraceView(self.store, self.looking, self._where, id="trace")
                yield RulesView(id="rules-view")
                yield FlowsView(id="flows-view")
                yield TotalsView(id="totals-view")
                yield NeighbourPane(id="neighbours")
            yield self.side
        yield Bar(id="status")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # Not by query later on: that asks the screen on top, which may be help.
        self.view = self.query_one(TraceView)
        self.rows: Rows = self.view.rows
        self._titles = self.view.titles
        self._about = self.query_one("#about", Bar)
        self._status = self.query_one("#status", Bar)
        self._filter = self.query_one(FilterBar)
        self.prompt = self.query_one(Prompt)
        self._notice_line = self.query_one("#notice", Static)
        self._neighbours = self.query_one("#neighbours", NeighbourPane)
        self._rules = self.query_one(RulesView)
        self._flows = self.query_one(FlowsView)
        self._totals = self.query_one(TotalsView)
        self._notice_line.display = False
        self.rows.focus()
        self._draw()
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._leave, 128 + number)
            hangup.watch(sys.__stdin__.fileno() if sys.__stdin__ is not None else 0)
        self.set_interval(STATUS, self.look)
        self.set_interval(TICK, self._tick)
        for line in self.lines:
            line.intake.start()
        if self.looking.filters.text:
            self.turned()
        # The first query would have the keys wait for the parser.
        self.run_worker(query_tree.parser, thread=True, group="parser", exit_on_error=False)

    def on_unmount(self) -> None:
        # Also the way out after a crash of the screen: nothing may stay armed.
        for line in self.lines:
            line.intake.close()

    async def action_quit(self) -> None:
        """Leave; a live source first gets the time to send its last counts."""
        if self._stopping or self.over or not sum(line.stop() for line in self.lines):
            self._leave()
            return
        self._stopping = True
        self.look()
        self.set_timer(self._grace, self._leave)

    def _leave(self, code: int = 0) -> None:
        if self._left:
            return
        self._left = True
        for line in self.lines:
            line.close()
        self.exit(add_up(self.lines, self.hosts()), return_code=code)

    # The streams.

    def on_arrived(self) -> None:
        self._feed()

    def _feed(self) -> None:
        if self._left:
            return
        until = monotonic() + BUDGET
        fed = True
        while fed and monotonic() < until:
            # Each in turn: a flood on one host must not hide the others.
            fed = sum(line.feed_one() for line in self.lines) > 0
            self._stale |= fed
        over = all(line.dry for line in self.lines)
        for line in self.lines:
            if line.dry and line.end():
                self._stale = True
        due = self._drawn + FRAME - monotonic()
        if over or (self._stale and due <= 0):
            self._draw()
        if over:
            self._end()
        elif any(line.intake.waiting for line in self.lines if not line.done):
            self.set_timer(BREATH, self._feed)
        elif self._stale:
            self.set_timer(max(due, BREATH), self._feed)
        elif sum(line.intake.arm() for line in self.lines if not line.over):
            self.set_timer(BREATH, self._feed)

    def _end(self) -> None:
        if self.over:
            return
        self.over = True
        self.look()
        if self._stopping:
            self._leave()

    # The picture.

    def _draw(self) -> None:
        self._drawn = monotonic()
        self._stale = False
        names, hosts, engine = self.places(), self.hosts(), engines(self.lines)
        if (names, hosts, engine) != (self._named, self._hosts, self._engine):
            self._named, self._hosts, self._engine = names, hosts, engine
            self.rows.name_places(names, hosts if len(hosts) > 1 else (), engine)
        known = sum(line.trace.neighbours.version for line in self.lines)
        if known != self._neighbours_known:
            self._neighbours_known = known
            self.rows.ask_lost(self._lost)
        self.view.pull()
        if self.store.end == 0:
            self.look()

    def places(self) -> dict[tuple[int, int], str]:
        return {
            (line.trace.host, inode): name
            for line in self.lines
            for inode, name in at.netns_names(line.trace.hello).items()
        }

    def netns_names(self, host: int | None = None) -> dict[int, str]:
        """Names of network namespaces by inode, of one host or of all.

        Of all, without those that are called one thing here and another there.
        """
        names: dict[int, str] = {}
        several: set[int] = set()
        for (where, inode), name in self._named.items():
            if host in (None, where) and names.setdefault(inode, name) != name:
                several.add(inode)
        return {inode: name for inode, name in names.items() if inode not in several}

    def hosts(self) -> list[str]:
        names = [line.host for line in self.lines]
        return [
            name if names.count(name) == 1 else clean(line.source.name)
            for name, line in zip(names, self.lines, strict=True)
        ]

    def _lost(self, row: Row) -> bool:
        """Whether it was accepted, and its next hop has now no link-layer address.

        Told only where the destination is the last one: after any DNAT.  A
        neighbour that is merely not there may just have been forgotten.
        """
        if row.verdict != "ACCEPT" or not row.out or not row.dst:
            return False
        leaves = row.hook == "POSTROUTING"
        if not leaves and (row.table != "filter" or row.hook not in ("OUTPUT", "FORWARD")):
            return False
        reach = self.lines[row.host].trace.neighbours.usable(row.netns, row.dst, row.out)
        return reach.state in UNREACHED

    def _where(self) -> Where:
        return Where(self.netns_names(self.view_line.trace.host), dict(enumerate(self.hosts())))

    def query_context(self) -> query.Context:
        return query.context_of(self.store, places=self.places(), hosts=self.hosts())

    @property
    def view_line(self) -> Line:
        """The line of the row under the cursor: whose host the panes speak of."""
        row = self.view.row if len(self.lines) > 1 else None
        return self.lines[row.host if row is not None else 0]

    def on_resize(self, event: events.Resize) -> None:
        self._show_side(event.size.width)

    def _show_side(self, width: int) -> None:
        wanted = width >= WIDE if self._side_wanted is None else self._side_wanted
        # Not beside the view of the same.
        self.side.display = wanted and self.switcher.current != "neighbours"

    def turned(self) -> None:
        """Another filter: the old rows are looked at, a portion between two keys."""
        if self.looking.progress is None or self.looking.work():
            self.view.pull()
        else:
            self.set_timer(BREATH, self.turned)
        self.look()

    def look(self) -> None:
        """Bring the bars, the notice and the empty screen up to date."""
        if self._left:
            return
        self._show_side(self.size.width)
        now = self.situation()
        view = self.rows
        self._about.show(about_pieces(now, self._title))
        self._status.show(status_pieces(now, view.paused, view.follow, view.newer, self.playing()))
        lens, filters = self.looking.lens, self.looking.filters
        shown = lens.end - lens.first
        self._filter.show(
            filter_pieces(
                filters.text, filters.trail, shown, len(self.store), self.looking.progress
            )
        )
        self._notice(now)
        for pane in (self.side, self._neighbours):
            if pane.display:
                line = self.view_line
                pane.show(line.trace.neighbours, self.netns_names(line.trace.host))
                if (row := self.view.row) is not None and not view.follow:
                    pane.choose(row.netns)
        self._show_tallies()
        if now.rows == 0:
            for line in self.lines:
                progress = clean(line.source.progress)
                if progress and progress not in self._progress:
                    self._progress.append(progress)
            self.view.empty.show(now, tuple(self._progress), self._notes()[-6:])

    def _tick(self) -> None:
        self.tallies.pull(self.store)
        asked = self._until
        if asked is not None and (seq := asked.feed(self.store, self.query_context())) is not None:
            text, self._until = asked.query.text, None
            self.tell({"cmd": "disarm"})
            # Fed already, and perhaps not in the list yet.
            self.view.pull()
            self.rows.move_to(self.looking.lens.place(seq))
            self.say(f"disarmed: this row is as asked for: {text}")
        self.tick()

    def _show_tallies(self) -> None:
        """Bring the view that is shown up to date, if it counts."""
        for line in self.lines:
            self.tallies.totals.note_books(line.trace.host, line.trace.books)
        if (shown := self.switcher.current) == "trace":
            return
        tallies, names, netns = self.tallies, self.store.names, self.places()
        hosts = self.hosts() if len(self.lines) > 1 else []
        if shown == "rules-view":
            self._rules.show(tallies.rules, names, self.store.rulesets, netns, hosts)
        elif shown == "flows-view":
            self._flows.show(tallies.flows, names, netns, hosts)
        elif shown == "totals-view":
            self._totals.show(tallies.totals, names, skipped=tallies.skipped)

    def situation(self) -> Situation:
        counts = add_up(self.lines)
        rows = counts["rows"]
        # The one that needs a person's eye most.
        worst = min(self.lines, key=lambda line: at.URGENCY.index(line.state))
        hosts, states = self.hosts(), [line.state for line in self.lines]
        if len(set(states)) > 1:
            hosts = [f"{host} {state}" for host, state in zip(hosts, states, strict=True)]
        elif len(hosts) == 1 and not worst.trace.hello:
            hosts = []
        return Situation(
            state=worst.state,
            reason=self._of(worst) + worst.reason if worst.reason else "",
            live=self.live,
            filter=worst.expr,
            engine=counts["engine"],
            host=", ".join(hosts),
            kernel=at.text_of(worst.trace.hello.get("kernel")) if len(self.lines) == 1 else "",
            rows=rows,
            rate=self._rate(rows),
            lost=counts["lost"],
            missed=counts["missed"],
            filtered=worst.filtered,
        )

    def _rate(self, rows: int) -> float | None:
        """Rows/s over the last two seconds."""
        if self.over:
            return None
        now = monotonic()
        if not self._samples or now - self._samples[-1][0] >= STATUS * 0.8:
            self._samples.append((now, rows))
        since, before = self._samples[0]
        return (rows - before) / (now - since) if now - since >= STATUS else 0.0

    def _notes(self) -> list[str]:
        return [self._of(line) + text for line in self.lines for _, text in line.trace.notes]

    def _of(self, line: Line) -> str:
        """What comes before words that are of one of several hosts."""
        return f"{self.hosts()[line.trace.host]}: " if len(self.lines) > 1 else ""

    def _notice(self, now: Situation) -> None:
        """The one line for what must not be overlooked."""
        text, error = self._word(now)
        if (text, error) != self._noticed:  # an update costs a layout
            self._noticed = text, error
            self._notice_line.display = bool(text)
            self._about.display = not text
            self._notice_line.set_class(error, "-error")
            self._notice_line.update(Content(text))

    def _word(self, now: Situation) -> tuple[str, bool]:
        if monotonic() < self._said[2]:
            return self._said[:2]
        for line in self.lines:
            if line.word:
                return line.word, True
        broken = [
            line
            for line in self.lines
            if line.over and (line.error is not None or line.trace.ended is None)
        ]
        if broken:
            words = " · ".join(self._of(line) + line.reason for line in broken)
            return words, any(line.error is not None for line in broken)
        if self.rows.gone:
            return (
                f"{self.rows.gone:,} rows of this picture are no longer held"
                " (the lines shown stay until you move); Space goes on"
            ), False
        if self.rows.slid:
            return "The rows you were reading are no longer held; Space freezes the picture", False
        word = ("", False)
        for line, read in zip(self.lines, self._read_notes, strict=True):
            for level, note in line.trace.notes[read:]:
                if level in ("warn", "error"):
                    word = self._of(line) + note, level == "error"
        return word

    def say(self, text: str, error: bool = False) -> None:
        """One line for a person, for some seconds."""
        self._said = clean(text), error, monotonic() + SAID
        self.look()

    def toggle_side(self) -> None:
        """The neighbours beside the rows, or not."""
        if self.switcher.current == "neighbours":
            self.say("they are here, over the whole screen: 1 goes back to the rows")
            return
        self._side_wanted = not self.side.display
        self._show_side(self.size.width)
        self.look()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette: all that keys do, by name, and what Textual brings."""
        places: list[App[Any] | Widget] = [self.rows, self.view, self]
        if self.view.detailed:
            places.insert(0, self.view.detail)
        if self.switcher.current != "trace" and self.switcher.visible_content is not None:
            places.insert(0, self.switcher.visible_content)
        for place in places:
            parts = type(place).__mro__ if place is self else (type(place),)
            for binding in own_bindings(*parts):
                yield SystemCommand(
                    (binding.tooltip or binding.description).capitalize(),
                    f"key: {key_names(binding.key)}",
                    # Not at once: the palette is still in front.
                    partial(self.call_later, place.run_action, binding.action),
                )
        wanted = ("Theme", "Maximize", "Minimize")
        yield from (
            command for command in super().get_system_commands(screen) if command.title in wanted
        )

    def unsay(self) -> None:
        """Put away what was said, and what agents have said."""
        self._said = ("", False, 0.0)
        self._read_notes = [len(line.trace.notes) for line in self.lines]
        self.look()

    def on_notice(self, message: Notice) -> None:
        self.say(message.text, message.error)

    def on_view_changed(self, message: ViewChanged) -> None:
        self.look()
