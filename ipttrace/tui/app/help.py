# SPDX-License-Identifier: GPL-2.0-only
"""The help screen: the keys, what each column means, what the bars say.

Made from the bindings and columns themselves, so it cannot drift from them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from ipttrace.tui.rows.columns import COLUMNS

_KEY_NAMES: Final = {
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "home": "Home",
    "end": "End",
    "left": "←",
    "right": "→",
    "space": "Space",
    "question_mark": "?",
    "f1": "F1",
    "escape": "Esc",
    "enter": "⏎",
    "backspace": "⌫",
    "colon": ":",
    "slash": "/",
    "apostrophe": "'",
    "at": "@",
    "comma": ",",
    "full_stop": ".",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}

_ROWS: Final = (
    "One row is one packet in one table: the rule that decided, and the verdict."
    " Rows of one packet stand along one rail at the left edge."
)
_BARS: Final = (
    ("traced: …", "what the kernel's filter lets through; K sets it"),
    ("lost", "records that no buffer had room for: there are holes in the trace"),
    ("missed", "calls that the kernel's probe could not see"),
    ("PAUSED +N", "the picture is frozen; N rows have come since and are kept"),
    ("SCROLLED +N", "you left the newest row; N rows are below the last line"),
)
_RULES: Final = (
    ("hits, /s", "packets that this trace saw at the rule, and how many come a second"),
    ("kernel", "the kernel's own counter, as iptables -vL has it, read now and then"),
    ("drops, drop%", "packets that the rule dropped, and its part of all drops"),
    ("p50, p99", "cost of the runs that ended at the rule: half, or 99 of 100, cost less"),
    ("pol, ret", "the chain's policy; the end of a user chain, back to where it was called"),
)
_NAMES: Final = 22  # cells for what is explained

Part = tuple[str, str] | str


def key_names(keys: str) -> str:
    """A binding's keys as printed on keyboards: "↑ k"."""
    names = []
    for key in keys.split(","):
        if key.startswith("ctrl+"):
            names.append(f"Ctrl-{key[5:].upper()}")
        else:
            names.append(_KEY_NAMES.get(key, key))
    return " ".join(names)


def _table(title: str, lines: Iterable[tuple[str, str]], width: int) -> list[Part]:
    parts: list[Part] = [(title, "bold $text-primary"), "\n"]
    for name, meaning in lines:
        wrapped = textwrap.wrap(meaning, max(20, width - _NAMES - 2)) or [""]
        parts += [(f"  {name:<{_NAMES}}", "$text-accent"), wrapped[0], "\n"]
        parts += [" " * (_NAMES + 2) + line + "\n" for line in wrapped[1:]]
    return [*parts, "\n"]


class Help(ModalScreen[None]):
    """Keys, columns, words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "Back"),
    ]

    def __init__(self, sections: Iterable[tuple[str, Iterable[Binding]]]) -> None:
        """`sections`: keys by the place where they work; those that work everywhere first."""
        super().__init__()
        self._sections = [
            (title, [(key_names(one.key), one.tooltip or one.description) for one in bindings])
            for title, bindings in sections
        ]
        self._sections[0][1].append(("Tab", "from the rows to the detail, and back"))
        self._sections[0][1].append(("mouse", "click a row; the wheel scrolls"))

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(id="help-text", markup=False)

    def on_mount(self) -> None:
        box = self.query_one("#help")
        box.border_title = "ipttrace"
        box.border_subtitle = "Esc: back"
        box.focus()
        self._fill()

    def on_resize(self, event: events.Resize) -> None:
        self._fill()

    def _fill(self) -> None:
        # As app.tcss has it: 90% of the screen and no more than 110, less border,
        # padding and scroll bar.
        width = min(110, self.app.size.width * 9 // 10) - 8
        self.query_one("#help-text", Static).update(
            Content.assemble(
                *(part for keys in self._sections for part in _table(*keys, width)),
                ("Rows", "bold $text-primary"),
                "\n",
                textwrap.indent(textwrap.fill(_ROWS, max(20, width - 2)), "  "),
                "\n\n",
                *_table(
                    "Columns", [(item.title or item.key, item.help) for item in COLUMNS], width
                ),
                *_table("Columns of the rules", _RULES, width),
                *_table("Bars", _BARS, width),
            )
        )
