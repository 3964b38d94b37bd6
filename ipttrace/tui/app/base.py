# SPDX-License-Identifier: GPL-2.0-only
"""The app without its commands: feeds the streams, draws the views and the bars.

Live, remote and recorded streams are handled alike: a `Source` returns bytes, an
`Intake` decodes them in a thread, and this app feeds the frames to their traces and
draws, all on its own thread.  At most one replaceable message a time announces
frames; feeding pauses after `BUDGET` seconds and goes on after keys have had their
turn, so that neither a flood nor a long recording blocks the keys.  `intake` explains
why there is no lock.

Must not contain what keys do, touch the kernel or parse bytes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import ContentSwitcher

from ipttrace.text import clean
from ipttrace.trace import query
from ipttrace.trace.query import tree as query_tree
from ipttrace.trace.query.until import Until
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.tui.app.counting import Counting, Pace
from ipttrace.tui.app.exit_on_hangup import exit_on_hangup
from ipttrace.tui.app.key_order import OrderedKeysApp
from ipttrace.tui.app.notice import NoticeLine
from ipttrace.tui.detail import KnownNames
from ipttrace.tui.drops import DropsView
from ipttrace.tui.feed import Feed, Source
from ipttrace.tui.feed.feeds import Feeds, Summary
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FramesArrived, Notice, ViewChanged
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.rows import Rows, ShownRows
from ipttrace.tui.rows.filter_bar import FilterBar
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.situation import Situation
from ipttrace.tui.sockets import SocketsView
from ipttrace.tui.timers import once
from ipttrace.tui.totals.view import TotalsView
from ipttrace.tui.trace_view import TraceView
from ipttrace.tui.widgets.bar import Bar, about_pieces, status_pieces
from ipttrace.tui.widgets.key_line import KeyLine
from ipttrace.tui.widgets.prompt import CheckText, Prompt

FRAME: Final = 0.05  # s between two pictures
BUDGET: Final = 0.015  # s of feeding before keys get their turn
BREATH: Final = 0.001  # s of that turn
STATUS: Final = 0.25  # s between two updates of the bars
TALLY: Final = 0.05  # s between two updates of the tallies
GRACE: Final = 2.0  # s that a live source gets to send its last counts
WIDE: Final = 160  # cells from which neighbours that fail are shown beside the rows
SIDE: Final = 46  # cells of the pane that shows them, as in app.tcss


class BaseApp(OrderedKeysApp[Summary]):
    """The screen over some sources.  `run()` returns `Feeds.summary()`."""

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
        check_expr: CheckText | None = None,
    ) -> None:
        """`title` is shown in the top bar; `capacity`: rows held before the oldest are evicted.

        `until`: disarms at the first row that matches; `shown`: the view's first filter;
        `check_expr`: what is wrong with a kernel filter, see `Ask.slow_check`.
        """
        super().__init__()
        sources = source if isinstance(source, Sequence) else [source]
        self.store = Store(capacity)
        self.feeds = Feeds(
            Feed(
                one,
                Trace(store=self.store, host=number),
                lambda: self.post_message(FramesArrived()),
            )
            for number, one in enumerate(sources)
        )
        self.shown = ShownRows(self.store, self.query_context)
        self.counting = Counting(self.store, self.shown)
        if shown is not None:
            self.shown.filter_by(shown.text)
        self.over = False  # no stream will bring any more
        self._title = clean(title)
        self._grace = grace
        self.check_expr = check_expr
        self._until = None if until is None else Until(until)
        self._stopping = False
        self._exiting = False
        self._stale = False  # fed since the last picture
        self._drawn = 0.0
        self._names: tuple[dict[tuple[int, int], str], list[str], str] = ({}, [], "")
        self._neighbours_version = 0
        self._progress: deque[str] = deque(maxlen=10)  # of sources without a first frame
        self._pace = Pace(STATUS)
        self._failing = False  # a neighbour has not answered
        self._side_wanted: bool | None = None  # None: depends on that and the screen's width
        # Kept here, since a query searches the top screen only, which may be help.
        self.about_bar = Bar(id="about")
        self.notice_line = NoticeLine(id="notice")
        self.filter_bar = FilterBar(id="filter")
        self.prompt = Prompt(self.focus_view, id="prompt")
        self.switcher = ContentSwitcher(id="views", initial="trace")
        self.view = TraceView(self.store, self.shown, self._known_names, id="trace")
        self.rules = RulesView(id="rules-view")
        self.flows = FlowsView(id="flows-view")
        self.totals = TotalsView(id="totals-view")
        self.neighbours = NeighbourPane(id="neighbours")
        self.drops = DropsView(id="drops-view")
        self.sockets = SocketsView(id="sockets-view")
        self.side = NeighbourPane(id="side")
        self.status_bar = Bar(id="status")

    @property
    def rows(self) -> Rows:
        """The list of rows."""
        return self.view.rows

    # Life.

    def compose(self) -> ComposeResult:
        yield self.about_bar
        yield self.notice_line  # takes the place of the line above: nothing below it moves
        yield self.filter_bar
        yield self.prompt
        with Horizontal(id="middle"):
            with self.switcher:
                yield self.view
                yield self.rules
                yield self.flows
                yield self.totals
                yield self.neighbours
                yield self.drops
                yield self.sockets
            yield self.side
        yield self.status_bar
        yield KeyLine(show_command_palette=False)

    def on_mount(self) -> None:
        self.rows.focus()
        self._draw()
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.exit_now, 128 + number)
            exit_on_hangup(sys.__stdin__.fileno() if sys.__stdin__ is not None else 0)
        self.set_interval(STATUS, self.refresh_bars)
        self.set_interval(TALLY, self._tally)
        for feed in self.feeds:
            feed.intake.start()
        if self.shown.filters.text:
            self.apply_filter()
        # Built now, since keys would wait for it at the first query.
        self.run_worker(query_tree.parser, thread=True, group="parser", exit_on_error=False)

    def on_unmount(self) -> None:
        for feed in self.feeds:  # also after a crash of the screen: nothing may stay armed
            feed.intake.close()

    def stop_and_exit(self) -> None:
        """Exits once live sources have sent their last counts; a second call exits at once."""
        if self._stopping or self.over or not sum(feed.stop() for feed in self.feeds):
            self.exit_now()
            return
        self._stopping = True
        self.refresh_bars()
        once(self, self._grace, self.exit_now)

    def exit_now(self, code: int = 0) -> None:
        """Closes the feeds and exits with this status."""
        if self._exiting:
            return
        self._exiting = True
        for feed in self.feeds:
            feed.close()
        self.exit(self.feeds.summary(), return_code=code)

    # The streams.

    def on_frames_arrived(self) -> None:
        self._feed()

    def _feed(self) -> None:
        if self._exiting:
            return
        until = monotonic() + BUDGET
        fed = True
        while fed and monotonic() < until:
            # Each in turn: a flood on one host must not hide the others.
            fed = sum(feed.feed_one() for feed in self.feeds) > 0
            self._stale |= fed
        over = all(feed.exhausted for feed in self.feeds)
        for feed in self.feeds:
            if feed.exhausted and feed.end():
                self._stale = True
        due = self._drawn + FRAME - monotonic()
        if over or (self._stale and due <= 0):
            self._draw()
        if over:
            self._end()
        elif any(feed.intake.waiting for feed in self.feeds if not feed.done):
            once(self, BREATH, self._feed)
        elif self._stale:
            once(self, max(due, BREATH), self._feed)
        elif sum(feed.intake.arm() for feed in self.feeds if not feed.over):
            once(self, BREATH, self._feed)

    def _end(self) -> None:
        if self.over:
            return
        self.over = True
        self.refresh_bars()
        if self._stopping:
            self.exit_now()

    def _tally(self) -> None:
        self.counting.pull()
        self.counting.pull_sockets(feed.trace for feed in self.feeds)
        until = self._until
        if until is not None and (seq := until.feed(self.store, self.query_context())) is not None:
            self._until = None
            self.feeds.send({"cmd": "disarm"})
            self.view.pull()  # the row may not be in the list yet
            self.rows.move_to(self.shown.selection.position(seq))
            self.show_notice(f"disarmed: --until matched this row: {until.query.text}")

    # Names.

    def query_context(self) -> query.Context:
        """What queries depend on besides the rows, as of now."""
        return query.context_of(
            self.store, netns_by_host=self.feeds.netns_names(), hosts=self.feeds.hosts()
        )

    def _netns_names(self, host: int) -> dict[int, str]:
        """Names of the host's network namespaces by inode."""
        return {inode: name for (at, inode), name in self._names[0].items() if at == host}

    def shown_names(self) -> tuple[dict[tuple[int, int], str], list[str]]:
        """The names in the list: namespaces by host and inode, and hosts by number."""
        return self._names[:2]

    @property
    def view_feed(self) -> Feed:
        """The feed of the row under the cursor, whose host the panes show."""
        row = self.view.row if len(self.feeds) > 1 else None
        return self.feeds[row.host if row is not None else 0]

    def _known_names(self) -> KnownNames:
        host = self.view_feed.trace.host
        hosts = dict(enumerate(self.feeds.hosts()))
        return KnownNames(self._netns_names(host), hosts, self.feeds.next_hop)

    # The picture.

    def _draw(self) -> None:
        self._drawn = monotonic()
        self._stale = False
        names = self.feeds.netns_names(), self.feeds.hosts(), self.feeds.engine
        if names != self._names:
            self._names = netns, hosts, engine = names
            self.rows.show_names(netns, hosts if len(hosts) > 1 else (), engine)
        version = sum(feed.trace.neighbours.version for feed in self.feeds)
        if version != self._neighbours_version:
            self._neighbours_version = version
            self._failing = self._failing or self.feeds.neighbour_fails()
            self.rows.show_unresolved(self.feeds.unresolved)
        self.view.pull()
        if self.store.end == 0:
            self.refresh_bars()

    def apply_filter(self) -> None:
        """Applies a new filter to the rows already held, a portion between two keys."""
        if self.shown.progress is None or self.shown.filter_portion():
            self.view.pull()
        else:
            once(self, BREATH, self.apply_filter)
        self.refresh_bars()

    def show_socket(self) -> None:
        """Shows the socket of the row under the cursor, if a stage of it was recorded."""
        row = self.view.row
        line = None if row is None else self.counting.sockets.of_row(row)
        if line is None:
            text = "no stage of this packet's socket was recorded; {connections} shows all"
            self.show_notice(with_keys(text, chosen(self)), error=True)
            return
        self.show_view("sockets-view")
        if not self.sockets.choose(line.key):
            self.show_notice("this packet's socket is too long ago to be listed", error=True)

    def show_view(self, name: str) -> None:
        """Shows this view and gives it the keys."""
        self.switcher.current = name
        self.focus_view()
        self.refresh_bars()

    def focus_view(self) -> None:
        """Gives the keys to the view that is shown."""
        shown = self.switcher.visible_content
        self.screen.set_focus(self.rows if shown is self.view or shown is None else shown)

    def on_resize(self, event: events.Resize) -> None:
        self._show_side(event.size.width)

    def _show_side(self, width: int) -> None:
        wanted, room = self._side_wanted, self.rows.rule_room
        if wanted is None:  # by itself it hides no rule text
            wanted = self._failing and width >= WIDE and room(width - SIDE) == room(width)
        # Not beside the view that shows the same.
        self.side.display = wanted and self.switcher.current != "neighbours"

    def toggle_side(self) -> None:
        """Shows the tables of the kernel beside the rows, or hides them."""
        if self.switcher.current == "neighbours":
            text = "this view shows the tables already: {rows} goes back to the rows"
            self.show_notice(with_keys(text, chosen(self)))
            return
        self._side_wanted = not self.side.display
        self._show_side(self.size.width)
        self.refresh_bars()

    # Bars, notice, panes.

    def situation(self) -> Situation:
        """What is going on."""
        return self.feeds.situation(self._rate())

    def _rate(self) -> float | None:
        """Rows/s over the last two seconds; None if no more will come."""
        if self.over:
            return None
        return self._pace.per_second(sum(feed.trace.rows for feed in self.feeds))

    def refresh_bars(self) -> None:
        """Updates the bars, the notice, the panes and the empty screen."""
        if self._exiting:
            return
        self._show_side(self.size.width)
        now, rows, shown = self.situation(), self.rows, self.shown
        playing = "" if shown.clock is None else shown.clock.label
        self.about_bar.show(about_pieces(now, self._title))
        view = rows.paused, rows.follow, rows.newer
        self.status_bar.show(status_pieces(now, *view, playing, self.feeds.recording))
        matching = shown.selection.end - shown.selection.first
        words, held = shown.filters.words, len(self.store)
        self.filter_bar.show_filter(words, matching, held, shown.progress, self.store.first)
        self.notice_line.refresh_from(self.feeds, rows)
        self.about_bar.display = not self.notice_line.display
        for pane in (self.side, self.neighbours):
            if pane.display:
                trace = self.view_feed.trace
                names = self._netns_names(trace.host)
                pane.show(trace.neighbours, trace.kernel_tables, names)
                if (row := self.view.row) is not None and not rows.follow:
                    pane.choose(row.netns)
        self._show_tallies()
        if now.rows == 0:
            for feed in self.feeds:
                progress = clean(feed.source.progress)
                if progress and progress not in self._progress:
                    self._progress.append(progress)
            self.view.empty.show(now, tuple(self._progress), self.feeds.notes()[-6:])

    def _show_tallies(self) -> None:
        """Updates the view that is shown, if it shows tallies."""
        for feed in self.feeds:
            self.counting.all.totals.note_books(feed.trace.host, feed.trace.books)
        view, netns = self.switcher.visible_content, self.feeds.netns_names()
        hosts = self.feeds.hosts() if len(self.feeds) > 1 else []
        if view is self.sockets:
            view.note_filter("  not filtered" if self.shown.filters.text else "")
            recorded, live = self.feeds.sockets, self.feeds.live and not self.over
            view.show(self.counting.sockets, netns, hosts, recorded=recorded, live=live)
        if not isinstance(view, RulesView | FlowsView | TotalsView | DropsView):
            return
        tallies, names = self.counting.current(), self.store.names
        view.note_filter(self.counting.about)
        if view is self.rules:
            view.note_clocks({feed.trace.host: feed.trace.clock for feed in self.feeds})
            view.show(tallies.rules, names, self.store.rulesets, netns, hosts)
        elif view is self.flows:
            view.show(tallies.flows, names, netns, hosts)
        elif view is self.drops:
            view.show(tallies.drops, self.store, netns, hosts, self.feeds.unseen_drops())
        elif view is self.totals:
            view.show(tallies.totals, names, skipped=tallies.skipped)

    def show_notice(self, text: str, error: bool = False) -> None:
        """Shows one line for some seconds."""
        self.notice_line.put(text, error)
        self.refresh_bars()

    def on_notice(self, message: Notice) -> None:
        self.show_notice(message.text, message.error)

    def on_view_changed(self, message: ViewChanged) -> None:
        self.refresh_bars()
