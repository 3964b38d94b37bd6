# SPDX-License-Identifier: GPL-2.0-only
"""The help screen: the keys, what each column means, what the bars say.

Made from the bindings and columns themselves, so it cannot drift from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ipttrace.tui.columns import COLUMNS

_KEY_NAMES = {
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "home": "Home",
    "end": "End",
    "space": "Space",
    "question_mark": "?",
    "f1": "F1",
    "escape": "Esc",
}

_BARS = (
    ("lost", "records that no buffer had room for: there are holes in the trace"),
    ("missed", "calls that the kernel's probe could not see"),
    ("PAUSED +N", "the picture is frozen; N rows have come since and are kept"),
    ("SCROLLED +N", "you left the newest row; N rows are below the last line"),
)


def key_names(keys: str) -> str:
    """A binding's keys as printed on keyboards: "↑ k"."""
    return " ".join(
        _KEY_NAMES.get(key, key.replace("ctrl+", "Ctrl-") if "+" in key else key)
        for key in keys.split(",")
    )


def _table(title: str, lines: Iterable[tuple[str, str]]) -> list[tuple[str, str] | str]:
    parts: list[tuple[str, str] | str] = [(title, "bold $text-primary"), "\n"]
    for name, meaning in lines:
        parts += [(f"  {name:<20} ", "$text-accent"), meaning, "\n"]
    return [*parts, "\n"]


class Help(ModalScreen[None]):
    """Keys, columns, words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "Back"),
    ]

    def __init__(self, bindings: Iterable[BindingType]) -> None:
        super().__init__()
        self._bindings_shown = [item for item in bindings if isinstance(item, Binding)]

    def compose(self) -> ComposeResult:
        keys = [
            (key_names(item.key), item.tooltip or item.description) for item in self._bindings_shown
        ]
        columns = [(column.title or column.key, column.help) for column in COLUMNS]
        content = Content.assemble(
            *_table("Keys", [*keys, ("mouse", "click a row; the wheel scrolls")]),
            "One row is one packet in one table: the rule that decided and the verdict.\n"
            "Rows of one packet stand together along the rail at the left edge.\n\n",
            *_table("Columns", columns),
            *_table("Bars", _BARS),
            ("Esc", "$text-accent"),
            " back",
        )
        with VerticalScroll(id="help"):
            yield Static(content, markup=False)

    def on_mount(self) -> None:
        box = self.query_one("#help")
        box.border_title = "ipttrace"
        box.focus()
