# SPDX-License-Identifier: GPL-2.0-only
"""The export dialog: which rows, and to which file.

Must not write a file: it returns an `ExportRequest`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, RadioButton, RadioSet, Static

from ipttrace.text import escape
from ipttrace.tui.cells import counted
from ipttrace.tui.widgets.entry import Entry
from ipttrace.view.formats import EXTENSIONS

_FORMATS: Final = f"the extension selects the format: {' '.join(EXTENSIONS)}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A set of rows that can be exported."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The answer; `choice` is an index into the dialog's choices."""

    choice: int
    path: str
    format: str
    overwrite: bool


class _Choice(RadioButton):
    """A choice that shows without colours whether it is chosen."""

    BUTTON_LEFT = "("
    BUTTON_RIGHT = ")"

    def render(self) -> Content:
        self.BUTTON_INNER = "*" if self.value else " "
        return super().render()


class ExportDialog(ModalScreen[ExportRequest | None]):
    """The dialog.  Enter returns a request, Escape None."""

    DEFAULT_CSS = """
    ExportDialog { align: center middle; }
    ExportDialog > Vertical {
        width: 76; max-width: 95%; height: auto; padding: 1 2;
        border: round $primary; background: $surface;
    }
    ExportDialog RadioSet { width: 100%; height: auto; border: none; background: $surface; }
    ExportDialog Input { border: tall $primary; width: 100%; height: auto; }
    ExportDialog Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Back"),
        Binding("ctrl+s", "export", "Export", show=False),
        Binding("up", "choose(-1)", show=False),
        Binding("down", "choose(1)", show=False),
    ]

    def __init__(
        self, choices: Sequence[Choice], chosen: int, path: str, title: str = "export rows"
    ) -> None:
        super().__init__()
        self._box_title = title
        self._choices = choices
        self._chosen = chosen
        self._path = path
        self._warned = ""  # the existing path that the user was warned of

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self._box_title
            box.border_subtitle = "↑ ↓: which rows   Enter: write   Esc: back"
            with RadioSet(id="what"):
                for number, choice in enumerate(self._choices):
                    yield _Choice(
                        f"{choice.name}: {counted(choice.rows, 'row')}",
                        value=number == self._chosen,
                        disabled=not choice.rows,
                    )
            yield Entry(self._path, id="path", select_on_focus=False)
            yield Static(id="export-hint", markup=False)

    def on_mount(self) -> None:
        self._advise()
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._advise()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.action_export()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def action_choose(self, step: int) -> None:
        """Chooses the next set that has rows, or the one before."""
        buttons = list(self.query(_Choice))
        before = self._choice
        at = before + step
        while 0 <= at < len(buttons):
            if self._choices[at].rows:
                with self.prevent(RadioButton.Changed):
                    buttons[before].value = False
                buttons[at].value = True
                return
            at += step

    @property
    def _choice(self) -> int:
        """The set chosen; -1: none.  Not the `RadioSet`'s, which learns of a key later."""
        chosen = [at for at, button in enumerate(self.query(_Choice)) if button.value]
        return chosen[0] if len(chosen) == 1 else self.query_one(RadioSet).pressed_index

    def action_export(self) -> None:
        path = self.query_one(Input).value.strip()
        format_ = EXTENSIONS.get(Path(path).suffix.lower())
        choice = self._choice
        if not path or format_ is None:
            self._show_hint(_FORMATS, error=True)
            return
        if choice < 0 or not self._choices[choice].rows:
            self._show_hint("there are no rows to export", error=True)
            return
        exists = os.path.lexists(os.path.expanduser(path))
        if exists and self._warned != path:
            self._warned = path
            self._show_hint(f"{escape(path)} exists: Enter again replaces it", error=True)
            return
        self.dismiss(ExportRequest(choice, path, format_, exists))

    def _advise(self) -> None:
        format_ = EXTENSIONS.get(Path(self.query_one(Input).value.strip()).suffix.lower())
        if format_ is None:
            self._show_hint(_FORMATS)
        else:
            self._show_hint(f"as {format_}")

    def _show_hint(self, text: str, error: bool = False) -> None:
        style = "bold $text-error" if error else "$foreground 70%"
        self.query_one("#export-hint", Static).update(Content.assemble((text, style)))
