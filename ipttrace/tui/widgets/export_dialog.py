# SPDX-License-Identifier: GPL-2.0-only
"""What to export, and where to: a question before an export.

Must not write anything: it answers with an `ExportRequest`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, RadioButton, RadioSet, Static

from ipttrace.text import escape
from ipttrace.tui.widgets.entry import Entry
from ipttrace.view.formats import EXTENSIONS


@dataclass(frozen=True, slots=True)
class Choice:
    """Some rows that may be exported."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a person wants: `what` is the number of the choice."""

    what: int
    path: str
    format: str
    overwrite: bool


class ExportDialog(ModalScreen[ExportRequest | None]):
    """Asks; Enter answers, Escape gives up."""

    DEFAULT_CSS = """
    ExportDialog { align: center middle; }
    ExportDialog > Vertical {
        width: 76; max-width: 95%; height: auto; padding: 1 2;
        border: round $primary; background: $surface;
    }
    ExportDialog RadioSet { width: 100%; height: auto; border: none; background: $surface; }
    ExportDialog Input { border: tall $primary; width: 100%; }
    ExportDialog Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "Back"),
        Binding("ctrl+s", "go", "Export", show=False),
    ]

    def __init__(self, choices: Sequence[Choice], chosen: int, path: str) -> None:
        super().__init__()
        self._choices = choices
        self._chosen = chosen
        self._path = path
        self._asked = ""  # the path that is there already, and was said to be

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "export"
            box.border_subtitle = "Enter: write   Esc: back"
            with RadioSet(id="what"):
                for number, choice in enumerate(self._choices):
                    yield RadioButton(
                        f"{choice.name}: {choice.rows:,} rows",
                        value=number == self._chosen,
                        disabled=not choice.rows,
                    )
            yield Entry(self._path, id="path", select_on_focus=False)
            yield Static(id="export-hint", markup=False)

    def on_mount(self) -> None:
        self._hint()
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._hint()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.action_go()

    def action_give_up(self) -> None:
        self.dismiss(None)

    def action_go(self) -> None:
        path = self.query_one(Input).value.strip()
        format_ = EXTENSIONS.get(Path(path).suffix.lower())
        what = self.query_one(RadioSet).pressed_index
        if not path or format_ is None:
            self._say(f"the file's ending tells the format: {' '.join(EXTENSIONS)}", error=True)
            return
        if what < 0 or not self._choices[what].rows:
            self._say("there are no such rows", error=True)
            return
        there = os.path.lexists(os.path.expanduser(path))
        if there and self._asked != path:
            self._asked = path
            self._say(f"{escape(path)} is there already: Enter again replaces it", error=True)
            return
        self.dismiss(ExportRequest(what, path, format_, there))

    def _hint(self) -> None:
        format_ = EXTENSIONS.get(Path(self.query_one(Input).value.strip()).suffix.lower())
        if format_ is None:
            self._say(f"the file's ending tells the format: {' '.join(EXTENSIONS)}")
        else:
            self._say(f"as {format_}")

    def _say(self, text: str, error: bool = False) -> None:
        style = "bold $text-error" if error else "$foreground 70%"
        self.query_one("#export-hint", Static).update(Content.assemble((text, style)))
