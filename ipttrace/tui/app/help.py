# SPDX-License-Identifier: GPL-2.0-only
"""The help screen: the keys, the columns, the words in the bars.

Built from the bindings and columns themselves, so it cannot contradict them.  Must
not know what a key does beyond its description.
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

from ipttrace.tui.app.keys import Section, key_names
from ipttrace.tui.rows.columns import COLUMNS

_ROWS: Final = (
    "A row is one packet in one table, with the rule that decided and the verdict."
    " The rail at the left edge joins the rows of a packet."
)
_BARS: Final = (
    ("traced: …", "the filter in the kernel; K sets it"),
    ("lost", "records for which the buffers had no room: the trace has gaps"),
    ("missed", "calls that the kernel's probes did not see"),
    ("PAUSED +N", "the picture is frozen; N rows have come since and are kept"),
    ("SCROLLED +N", "you left the newest row; N rows are below the last line"),
)
_RULES: Final = (
    ("hits, /s", "packets that this trace saw hit the rule, and how many per second"),
    ("kernel", "the kernel's own counter, as in iptables -vL; updated every few seconds"),
    ("drops, drop%", "packets that the rule dropped, and its share of all drops"),
    ("p50, p99", "cost of the calls that ended at the rule: 50% or 99% of them cost less"),
    ("pol, ret", "the chain's policy; the end of a user chain, which returns to its caller"),
)
_TERM: Final = 22  # cells for a key or word, before its meaning

Part = tuple[str, str] | str


def _table(title: str, lines: Iterable[tuple[str, str]], width: int) -> list[Part]:
    parts: list[Part] = [(title, "bold $text-primary"), "\n"]
    for name, meaning in lines:
        wrapped = textwrap.wrap(meaning, max(20, width - _TERM - 2)) or [""]
        parts += [(f"  {name:<{_TERM}}", "$text-accent"), wrapped[0], "\n"]
        parts += [" " * (_TERM + 2) + line + "\n" for line in wrapped[1:]]
    return [*parts, "\n"]


class Help(ModalScreen[None]):
    """Shows keys, columns and words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss", "Back"),
    ]

    def __init__(self, sections: Iterable[Section]) -> None:
        """`sections`: keys by where they work; those that work everywhere first."""
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
        # As in app.tcss: 90% of the screen and at most 110 cells, without border,
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
