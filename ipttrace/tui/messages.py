# SPDX-License-Identifier: GPL-2.0-only
"""The messages between the readers, the widgets and the app.

Data only; must not import a widget.
"""

from __future__ import annotations

from textual.message import Message


class FramesArrived(Message, bubble=False):
    """Frames, or the end of a stream, wait in an intake.

    Carries nothing, since what waits stays in the intake: several may become one.
    """

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, FramesArrived)


class ViewChanged(Message):
    """The list follows, pauses or has lost rows: the bars must show it."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ViewChanged)


class ColumnsChanged(Message):
    """The list has chosen other columns for a new width."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ColumnsChanged)


class TitleClicked(Message):
    """The user has clicked on the title of a column of rows."""

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column  # its key


class CursorMoved(Message):
    """The list's cursor is on another row."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, CursorMoved)


class FilterRequested(Message):
    """The user wants only the rows that match `query`, in addition to the present filter.

    `words` describes it: "chain filter FORWARD".  `replace`: in place of the present
    filter.
    """

    def __init__(self, query: str, words: str, *, replace: bool = False) -> None:
        super().__init__()
        self.query = query
        self.words = words
        self.replace = replace


class SocketRequested(Message):
    """The user wants the socket of the row under the cursor."""


class SocketsRequested(Message):
    """The user wants stages of sockets to be recorded, or no longer."""


class Notice(Message):
    """One line for the user, shown for a moment: what was done, or why it was not."""

    def __init__(self, text: str, error: bool = False) -> None:
        super().__init__()
        self.text = text
        self.error = error


class ExportProgress(Message, bubble=False):
    """How far an export is, in rows."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__()
        self.done = done
        self.total = total

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, ExportProgress)


class ExportEnded(Message, bubble=False):
    """An export is over; `text` is its outcome."""

    def __init__(self, text: str, error: bool = False) -> None:
        super().__init__()
        self.text = text
        self.error = error


class WhyNotRequested(Message):
    """The user asks why the packet under the cursor does not meet a rule.

    `rule`: as for ``ipttrace whynot``; None: the user names it.
    """

    def __init__(self, rule: str | None) -> None:
        super().__init__()
        self.rule = rule


class RulesAnswered(Message, bubble=False):
    """A question about a packet is answered; `error`: why it could not be, else ""."""

    def __init__(self, title: str, lines: list[str], error: str = "") -> None:
        super().__init__()
        self.title = title
        self.lines = lines
        self.error = error
