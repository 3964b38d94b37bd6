# SPDX-License-Identifier: GPL-2.0-only
"""An input field that accepts printable text only.

Pasted text may hold terminal escapes, which Textual's own field would pass on to
the terminal.  Must not know what the field is for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from textual import events
from textual.widgets import Input


class Entry(Input):
    """The field.  Of pasted text it accepts the printable characters of the first line."""

    def __init__(
        self, *args: Any, accept: Callable[[], Awaitable[None]] | None = None, **more: Any
    ) -> None:
        """`accept`: called by Enter at once; without it, Enter posts `Input.Submitted`."""
        super().__init__(*args, **more)
        self._accept = accept

    def add(self, text: str) -> None:
        """Insert `text` as if it had been typed."""
        self.replace(text, *self.selection)

    async def action_submit(self) -> None:
        if self._accept is None:
            await super().action_submit()
        else:
            await self._accept()

    def paste(self, text: str) -> None:
        """Insert the printable characters of the first line of `text`."""
        line = next(iter(text.splitlines()), "").replace("\t", " ")
        self.add("".join(filter(str.isprintable, line)))

    def on_paste(self, event: events.Paste) -> None:
        """Replaces Textual's handler."""
        event.prevent_default().stop()
        self.paste(event.text)
