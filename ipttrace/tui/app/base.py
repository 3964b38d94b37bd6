# SPDX-License-Identifier: GPL-2.0-only
"""What the parts of the app know of each other.

`TraceApp` is made of `Commands`, `Files` and `Timing`, each in a file of its
own; this is what they have in common.  Has no behaviour.
"""

from __future__ import annotations

from typing import Any

from textual.widgets import ContentSwitcher

from ipttrace.trace import query
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.tui.app.in_order import InOrder
from ipttrace.tui.feed.feed import Line
from ipttrace.tui.rows.list import Rows
from ipttrace.tui.rows.looking import Looking
from ipttrace.tui.situation import Situation
from ipttrace.tui.trace_view import TraceView
from ipttrace.tui.widgets.prompt import Prompt

Summary = dict[str, Any]


class Base(InOrder[Summary]):
    """The app as its parts see it."""

    store: Store
    lines: list[Line]
    looking: Looking
    view: TraceView
    rows: Rows
    prompt: Prompt
    switcher: ContentSwitcher
    exporting: bool
    over: bool  # no stream will bring any more

    @property
    def trace(self) -> Trace:
        """The first source's trace."""
        return self.lines[0].trace

    @property
    def live(self) -> bool:
        """Whether any of the sources is."""
        return any(line.source.live for line in self.lines)

    def say(self, text: str, error: bool = False) -> None:
        """One line for a person, for some seconds."""
        raise NotImplementedError

    def unsay(self) -> None:
        """Put away what was said, and what agents have said."""
        raise NotImplementedError

    def stop_export(self) -> bool:
        """Stop an export that goes on; False when there is none."""
        raise NotImplementedError

    def look(self) -> None:
        """Bring the bars, the notice and the empty screen up to date."""
        raise NotImplementedError

    def action_view(self, name: str) -> None:
        """Show this view and give it the keys."""
        raise NotImplementedError

    def toggle_side(self) -> None:
        """The neighbours beside the rows, or not."""
        raise NotImplementedError

    def turned(self) -> None:
        """Another filter is in force."""
        raise NotImplementedError

    def situation(self) -> Situation:
        """What is going on."""
        raise NotImplementedError

    def places(self) -> dict[tuple[int, int], str]:
        """Names of network namespaces by host and inode."""
        raise NotImplementedError

    def hosts(self) -> list[str]:
        """What each host calls itself, or where two say the same, what we call it."""
        raise NotImplementedError

    def query_context(self) -> query.Context:
        """What queries need to know now."""
        raise NotImplementedError
