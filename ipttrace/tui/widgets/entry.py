# SPDX-License-Identifier: GPL-2.0-only
"""A field that a person fills in.

What is pasted may hold terminal escapes, and Textual's own field would send
them on to the terminal.  Must not know what it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual import events
from textual.widgets import Input


class Entry(Input):
    """Takes what can be printed, and of what is pasted the first line."""

    def __init__(self, *args: Any, accept: Callable[[], object] | None = None, **more: Any) -> None:
        """`accept`: called by Enter, at once; without it a message says so some time later."""
        super().__init__(*args, **more)
        self._accept = accept

    def add(self, text: str) -> None:
        """As if its keys had been pressed."""
        self.replace(text, *self.selection)

    async def action_submit(self) -> None:
        if self._accept is None:
            await super().action_submit()
        else:
            self._accept()

    def paste(self, text: str) -> None:
        """The first line of what may be anything."""
        line = next(iter(text.splitlines()), "").replace("\t", " ")
        self.add("".join(filter(str.isprintable, line)))

    def on_paste(self, event: events.Paste) -> None:
        """Instead of Textual's own."""
        event.prevent_default().stop()
        self.paste(event.text)
