# SPDX-License-Identifier: GPL-2.0-only
"""What keys do that concern the whole screen: filters, search, time, the agent.

A part of `TraceApp`, in a file of its own.  Must not feed or draw.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType

from ipttrace.trace import query
from ipttrace.trace.query.complete import complete, values_of
from ipttrace.trace.query.pcap import expression
from ipttrace.tui import situation as at
from ipttrace.tui.app.base import Base
from ipttrace.tui.app.help import Help
from ipttrace.tui.detail.pane import Detail
from ipttrace.tui.feed.source import StreamSource
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.messages import FilterAsked
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.rows.list import Rows
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.totals import TotalsView
from ipttrace.tui.trace_view import TraceView
from ipttrace.tui.widgets.prompt import Ask, Hint

GATHERED: Final = 1 << 16  # rows whose names completion knows
SEARCHES: Final = ("comm", "in", "out", "table", "chain", "verdict", "proto", "rule")


def own_bindings(*parts: type) -> list[Binding]:
    """Their own keys, the first of several that are the same."""
    found: dict[str, Binding] = {}
    for part in parts:
        if part is App:  # what Textual's own do is not ours to tell
            break
        for binding in part.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding):
                found.setdefault(binding.key, binding)
    found.pop("ctrl+q", None)
    return list(found.values())


class Commands(Base):
    """Actions of the app."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # In this order they stand in the footer, of which a narrow terminal shows the first.
        Binding(
            "backspace", "unfilter", "Back", key_display="⌫", tooltip="one filter of the view less"
        ),
        Binding(
            "question_mark,f1", "help", "Help", key_display="?", tooltip="keys, columns, words"
        ),
        Binding("q", "quit", "Quit", tooltip="disarm, clean up and leave"),
        Binding("colon", "write", "Filter", key_display=":", tooltip="write the view's filter"),
        Binding("slash", "search", "Search", key_display="/", tooltip="go to a row that matches"),
        Binding(
            "space",
            "pause",
            "Pause",
            key_display="␣",
            tooltip="freeze the picture, or go on; rows keep coming in",
        ),
        Binding("t", "follow", "Tail", tooltip="follow the newest row, or stay here"),
        Binding(
            "2", "view('rules-view')", "Rules", tooltip="the rules, with what they hit and cost"
        ),
        Binding(
            "K",
            "kernel",
            "Kernel",
            tooltip="filter in the kernel: this row's flow, or what you write",
        ),
        Binding("1", "view('trace')", "the rows", show=False),
        Binding(
            "3", "view('flows-view')", "the flows with the most packets, drops, cost", show=False
        ),
        Binding("4", "view('totals-view')", "totals and rates over time", show=False),
        Binding("5", "view('neighbours')", "neighbour tables, the whole screen", show=False),
        Binding("o", "side", "neighbour tables beside the rows, or not", show=False),
        Binding("A", "arm", "disarm: no packet is traced; again: arm", show=False),
        Binding("escape", "put_away", "put away the agent's warning", show=False),
        Binding(
            "ctrl+c,ctrl+q",
            "quit",
            "Quit",
            show=False,
            priority=True,
            tooltip="the same; again: at once",
        ),
    ]

    # The list.

    def action_pause(self) -> None:
        self.rows.toggle_pause()

    def action_follow(self) -> None:
        self.rows.toggle_follow()

    def action_put_away(self) -> None:
        if self.stop_export():
            return
        for line in self.lines:
            line.word = ""
        self.unsay()

    def key_sections(self) -> list[tuple[str, list[Binding]]]:
        """Every key of the screen, once in each place that has it."""
        return [
            ("Keys", own_bindings(TraceView, Rows, Commands, *type(self).__mro__)),
            ("Keys in the detail", own_bindings(Detail)),
            ("Keys among the rules", own_bindings(RulesView)),
            ("Keys among the flows", own_bindings(FlowsView)),
            ("Keys among the totals", own_bindings(TotalsView)),
            ("Keys among the neighbours", own_bindings(NeighbourPane)),
        ]

    def all_bindings(self) -> list[Binding]:
        """Every key of the screen."""
        return [binding for _, bindings in self.key_sections() for binding in bindings]

    def action_help(self) -> None:
        self.push_screen(Help(self.key_sections()))

    def action_arm(self) -> None:
        if not self.live or self.over:
            self.say("nothing is traced here that could be armed or disarmed", error=True)
            return
        armed = self.situation().state == at.ARMED
        if self.tell({"cmd": "disarm" if armed else "arm"}):
            self.say("disarming: no packet is traced until A arms again" if armed else "arming")
        else:
            self.say("the agent does not take commands now", error=True)

    def action_view(self, name: str) -> None:
        self.switcher.current = name
        self.focus_view()
        self.look()

    def focus_view(self) -> None:
        """Give the keys to the view that is shown."""
        shown = self.switcher.visible_content
        if shown is self.view or shown is None:
            self.screen.set_focus(self.rows)
        else:
            self.screen.set_focus(shown)

    def action_side(self) -> None:
        self.toggle_side()

    # The view's filter.

    _completions: query.Context

    def on_filter_asked(self, message: FilterAsked) -> None:
        try:
            put = self.looking.write if message.whole else self.looking.narrow
            new = put(message.query, message.name)
        except query.QueryError as error:
            self.say(str(error), error=True)
            return
        self.action_view("trace")
        if not new:
            self.say("that is the filter already: ⌫ goes back")
        self.turned()

    def action_unfilter(self) -> None:
        if not self.looking.back():
            self.say("no filter is in force: all rows are shown")
        self.turned()

    def _gather(self) -> None:
        """What the newest rows have, for completion."""
        newest = self.store.parts(self.store.end - GATHERED)
        values = values_of(newest, self.store.names)
        self._completions = replace(self.query_context(), values=values)

    def action_write(self) -> None:
        self._gather()
        self.prompt.ask(
            Ask(
                "filter",
                self._written,
                initial=self.looking.filters.text,
                placeholder="verdict=DROP and src in 10.0.0.0/8   (empty: all rows)",
                check=self.looking.check,
                complete=self._complete,
            )
        )

    def _written(self, text: str) -> None:
        self.looking.write(text)
        self.action_view("trace")
        self.turned()

    def _complete(self, text: str, cursor: int) -> list[Hint]:
        return [
            Hint(one.text, one.start, one.end, one.help)
            for one in complete(text, cursor, self._completions)
        ]

    # The search.

    def action_search(self) -> None:
        self._gather()
        self.prompt.ask(
            Ask(
                "search",
                self._search,
                placeholder="a word, or a query: dport=443   (n: the next, N: the one before)",
                complete=self._complete,
            )
        )

    def _search(self, text: str) -> None:
        self.looking.words = text
        if not text:
            self.looking.sought = ""
            return
        if self.looking.check(text) is not None:
            word = query.quote(re.escape(text))
            text = " or ".join(f"{name}~{word}" for name in SEARCHES)
            if (wrong := self.looking.check(text)) is not None:
                self.say(f"this cannot be looked for: {wrong[0]}", error=True)
                return
        self.looking.sought = text
        self.action_view("trace")
        # After the newest row there is nothing yet: the last that has come is meant.
        if self.rows.follow:
            self.view.find(text, -1, self.looking.lens.end)
        else:
            self.view.find(text)

    # The agent.

    def tell(self, command: dict[str, Any]) -> int:
        """One line on the control line of every live source; how many took it."""
        data = json.dumps(command).encode() + b"\n"
        return sum(
            isinstance(line.source, StreamSource) and line.source.send(data)
            for line in self.lines
            if not line.over
        )

    def action_kernel(self) -> None:
        if not self.live or self.over:
            self.say("nothing is traced here: a recording has no kernel to filter in", error=True)
            return
        row = self.view.row
        initial = self.situation().filter
        if row is not None and self.looking.filters.text:
            initial = expression(self.store.raw(row.index), row) or initial
        self.prompt.ask(
            Ask(
                "kernel filter",
                self._pushed,
                initial=initial,
                placeholder="a pcap-filter expression: tcp port 443   (empty: all packets)",
            )
        )

    def _pushed(self, text: str) -> None:
        if self.tell({"cmd": "filter", "expr": text}):
            self.say(f"sent to the kernel: {text or 'all packets'}")
        else:
            self.say("the agent does not take commands now", error=True)
