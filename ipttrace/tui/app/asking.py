# SPDX-License-Identifier: GPL-2.0-only
"""Asking the rules about a row's packet, in a thread: what if it came now, and why not a rule.

Must not make copies of rules itself: a function that the program gives the app does.
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from ipttrace.trace.row import Row
from ipttrace.trace.rules import tables_name
from ipttrace.trace.store import Store
from ipttrace.tui.app.answer import Answer
from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.messages import RulesAnswered
from ipttrace.tui.widgets.prompt import Ask

_FRAME: Final = 8  # cells of the answer's border, padding and scroll bar


class AskRules(Protocol):
    """Sends the packet of a row through the rules as they are now.  Called in a thread."""

    def __call__(
        self, store: Store, seq: int, netns: str | None, rule: str | None, width: int
    ) -> tuple[list[str], str]:
        """Returns lines of at most about `width` cells, or an error, one line.

        `netns`: the name of the row's network namespace; `rule`: None, or for why not, as in
        ``ipttrace whynot``.
        """
        ...


class Asking:
    """The commands; one question at a time."""

    def __init__(self, app: BaseApp, ask: AskRules | None) -> None:
        """`ask`: None if the rules of the rows' host cannot be asked."""
        self._app = app
        self._ask = ask
        self.running = False

    def what_if(self) -> None:
        """Asks for the way of the row's packet through the rules as they are now."""
        if (row := self._row()) is not None:
            self._start(row, None, "this packet now")

    def why_not(self, rule: str | None = None) -> None:
        """Asks why the row's packet does not meet a rule; None: the user names it."""
        row = self._row()
        if row is None:
            return
        if rule is not None:
            self._start(row, rule, f"why not {rule}")
            return
        initial = f"{row.table} {row.chain or ''} "
        if row.tables:
            initial = f"{tables_name(row.tables)} {initial}"
        self._app.prompt.ask(
            Ask(
                "why not rule",
                lambda text: self._start(row, text, f"why not {text}"),
                initial=initial if row.table else "",
                placeholder="filter FORWARD 3",
            )
        )

    def end(self, message: RulesAnswered) -> None:
        """Shows the answer."""
        self.running = False
        app = self._app
        if message.error:
            app.show_notice(message.error, error=True)
            return
        app.notice_line.dismiss(app.feeds)
        app.refresh_bars()
        app.push_screen(Answer(message.title, message.lines))

    def _row(self) -> Row | None:
        """The row under the cursor, if it can be asked about."""
        app = self._app
        row = app.rows.current
        why = ""
        if row is None:
            why = "no row under the cursor"
        elif self.running:
            why = "a question is being answered"
        elif self._ask is None:
            number = row.index + 1
            why = f"not a live trace of this host: ipttrace whatif 'from row {number} of FILE'"
        if why:
            app.show_notice(why, error=True)
            return None
        return row

    def _start(self, row: Row, rule: str | None, title: str) -> None:
        app = self._app
        names = app.feeds.netns_names()
        host = int(app.store.raw(row.index)["host"])
        self.running = True
        app.show_notice("the packet is sent through a copy of the rules …")
        app.run_worker(
            partial(self._run, row.index, names.get((host, row.netns)), rule, title),
            group="asking",
            exclusive=True,
            exit_on_error=False,
            thread=True,
        )

    def _run(self, seq: int, netns: str | None, rule: str | None, title: str) -> None:
        """In a thread of its own."""
        assert self._ask is not None
        app = self._app
        try:
            width = max(app.size.width - _FRAME, 40)
            lines, error = self._ask(app.store, seq, netns, rule, width)
        except Exception as bug:  # shown on the screen, which must go on
            lines, error = [], f"the question failed: {bug}"
        app.post_message(RulesAnswered(title, lines, error))
