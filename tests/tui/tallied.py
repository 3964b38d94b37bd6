# SPDX-License-Identifier: GPL-2.0-only
"""A screen with one view of tallies on it, fed from frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import ContentSwitcher, Static

from ipttrace.stream.decoder import Decoder, read_file
from ipttrace.trace import query
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.trace.tally import Tallies
from ipttrace.tui import situation
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.messages import FilterRequested, Notice
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.totals.view import TotalsView
from ipttrace.tui.widgets import ledger
from ipttrace.tui.widgets.ledger import Ledger
from tests.data import streams

NETNS = 4026532456


class Tallied:
    """Traces that share a store, and their tallies."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self.store = Store()
        count = max(len(hosts), 1)
        self.traces = [Trace(store=self.store, host=number) for number in range(count)]
        self.tallies = Tallies()
        self.hosts = hosts
        self._decoders = [Decoder() for _ in self.traces]
        for number in range(count):
            self.feed(streams.hello(), number)

    def feed(self, data: bytes, host: int = 0) -> None:
        for frame in self._decoders[host].feed(data):
            self.traces[host].feed(frame)
        self._count()

    def replay(self, path: Path) -> None:
        for frame in read_file(path):
            self.traces[0].feed(frame)
        self._count()

    def _count(self) -> None:
        while self.tallies.pull(self.store):
            pass
        for number, trace in enumerate(self.traces):
            self.tallies.totals.note_books(number, trace.books)

    def rules(self, chains: dict[str, Any], host: int = 0, **changes: Any) -> None:
        frame = {
            "netns": NETNS,
            "family": 4,
            "table": "filter",
            "backend": "legacy",
            "since": 1,
            "mono": 1,
            "upto": 1,
            "chains": chains,
            **changes,
        }
        self.traces[host].rulesets.feed(frame)

    @property
    def netns(self) -> dict[tuple[int, int], str]:
        return {
            (number, inode): name
            for number, trace in enumerate(self.traces)
            for inode, name in situation.netns_names(trace.hello).items()
        }

    def show(self, view: Ledger) -> None:
        names, tallies = self.store.names, self.tallies
        if isinstance(view, RulesView):
            view.show(tallies.rules, names, self.store.rulesets, self.netns, self.hosts)
        elif isinstance(view, FlowsView):
            view.show(tallies.flows, names, self.netns, self.hosts)
        elif isinstance(view, TotalsView):
            view.show(tallies.totals, names, skipped=tallies.skipped)

    def matching(self, text: str) -> int:
        """The number of rows in the store that a query matches."""
        context = query.context_of(self.store, netns_by_host=self.netns, hosts=self.hosts)
        asked = query.compile(text)
        return sum(int(np.count_nonzero(asked.mask(p, context))) for p in self.store.parts())


class Screen(App[None]):
    """One view, and another one that can hide it."""

    CSS = "ContentSwitcher, Ledger { height: 1fr; width: 1fr; }"

    def __init__(self, view: Ledger) -> None:
        super().__init__()
        self.view = view
        view.id = "view"
        self.asked: list[FilterRequested] = []
        self.notices: list[str] = []

    def compose(self) -> ComposeResult:
        with ContentSwitcher(initial="view"):
            yield self.view
            yield Static(id="other")

    def on_mount(self) -> None:
        self.view.focus()

    def on_filter_requested(self, message: FilterRequested) -> None:
        self.asked.append(message)

    def on_notice(self, message: Notice) -> None:
        self.notices.append(message.text)


@contextmanager
def _at_once() -> Iterator[None]:
    """Removes the delay between pictures, since tests check what they show."""
    before, ledger.EVERY = ledger.EVERY, 0.0  # type: ignore[misc]
    try:
        yield
    finally:
        ledger.EVERY = before  # type: ignore[misc]


@asynccontextmanager
async def on_screen(
    view: Ledger, tallied: Tallied | None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Screen, Pilot[None]]]:
    """A screen that shows `tallied` in `view`, which has the keys."""
    app = Screen(view)
    with _at_once():
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            if tallied is not None:
                tallied.show(view)
            await pilot.pause()
            yield app, pilot


def lines(app: Screen) -> list[str]:
    """The view's lines as drawn."""
    return [app.view.render_line(y).text for y in range(app.view.size.height)]


def line_with(app: Screen, text: str) -> str:
    """The one line that contains `text`."""
    (found,) = [line for line in lines(app) if text in line]
    return found


def picked(app: Screen) -> str:
    """The line that the cursor is on."""
    view = app.view
    y = view._line - round(view.scroll_offset.y) + len(view._head)
    return view.render_line(y).text
