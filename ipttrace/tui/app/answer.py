# SPDX-License-Identifier: GPL-2.0-only
"""The answer to a question about a packet, over the other views.  Must not ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

_DIFFERENT: Final = ("≠", "✗")


class Answer(ModalScreen[None]):
    """Shows lines; those that differ stand out."""

    DEFAULT_CSS = """
    Answer { align: center middle; }
    Answer #answer {
        width: 100%; height: auto; max-height: 90%; padding: 0 2;
        border: round $primary; background: $surface; color: $foreground;
    }
    Answer Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss", "Back")]

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title_text = title
        self._lines = lines

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="answer") as box:
            box.border_title = Content(self._title_text)
            box.border_subtitle = "Esc: back"
            yield Static(Content.assemble(*map(_styled, self._lines)), markup=False)

    def on_mount(self) -> None:
        self.query_one("#answer").focus()


def _styled(line: str) -> tuple[str, str]:
    different = any(mark in line for mark in _DIFFERENT)
    return f"{line}\n", "bold $text-warning" if different else ""
