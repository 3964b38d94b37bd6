# SPDX-License-Identifier: GPL-2.0-only
"""The messages that travel between the reader, the widgets and the app.

Plain facts, no behaviour; must not import a widget.
"""

from __future__ import annotations

from textual.message import Message


class Arrived(Message, bubble=False):
    """Frames, or the end of the stream, wait in the intake.

    Carries nothing: what waits stays in the intake, so several may become one.
    """

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Arrived)


class ViewChanged(Message):
    """The list of rows follows, pauses or has lost rows: the bars must say so."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ViewChanged)


class ColumnsChanged(Message):
    """The list of rows chose other columns for a new width."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ColumnsChanged)


class CursorMoved(Message):
    """The cursor of the list is on another row."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, CursorMoved)


class FilterAsked(Message):
    """A person wants to see only what `query` says, on top of what is filtered now.

    `name` is the word for it in a few cells: "flow", "rule", …
    `whole`: all of that, in place of what is filtered now.
    """

    def __init__(self, query: str, name: str, *, whole: bool = False) -> None:
        super().__init__()
        self.query = query
        self.name = name
        self.whole = whole


class Notice(Message):
    """One line for a person, for a moment: what was done, or why it was not."""

    def __init__(self, text: str, error: bool = False) -> None:
        super().__init__()
        self.text = text
        self.error = error


class Exporting(Message, bubble=False):
    """How far an export is, in rows."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done = done
        self.total = total

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Exporting)


class ExportEnded(Message, bubble=False):
    """An export is over; `text` says how."""

    def __init__(self, text: str, error: bool = False) -> None:
        super().__init__()
        self.text = text
        self.error = error
