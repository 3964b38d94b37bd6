# SPDX-License-Identifier: GPL-2.0-only
"""A field that a person fills in.

What is pasted may hold terminal escapes, and Textual's own field would send
them on to the terminal.  Must not know what it is for.
"""

from __future__ import annotations

from textual import events
from textual.widgets import Input


class Entry(Input):
    """Takes what can be printed, and of what is pasted the first line."""

    def on_paste(self, event: events.Paste) -> None:
        """Before Textual's own takes it."""
        line = next(iter(event.text.splitlines()), "").replace("\t", " ")
        event.text = "".join(filter(str.isprintable, line))
