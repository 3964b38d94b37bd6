# SPDX-License-Identifier: GPL-2.0-only
"""The help screen: keys, columns, queries and bars, those of the shown view first.

Built from the bindings and columns themselves, so it cannot contradict them.  Must
not know what a key does beyond its description.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from ipttrace.tui.app import help_words
from ipttrace.tui.app.keys import Section
from ipttrace.tui.key_words import names_in, with_keys

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
        Binding("slash", "find", "Search"),
    ]

    def __init__(
        self,
        sections: Iterable[Section],
        keymap: Mapping[str, str] | None = None,
        view: str = "trace",
    ) -> None:
        """`sections`: keys by where they work; those that work everywhere first.

        `keymap`: the keys that the user has chosen, by action; `view`: the one that is
        shown, one of help_words.VIEWS; its keys and columns come first.
        """
        super().__init__()
        self._keymap = {} if keymap is None else keymap
        self._view = view if view in help_words.VIEWS else "trace"
        self._sections = [
            (
                title,
                [
                    (
                        names_in(self._keymap, one.id, one.key),
                        with_keys(one.tooltip or one.description, self._keymap),
                    )
                    for one in bindings
                ],
            )
            for title, bindings in sections
        ]
        self._sections[0][1].append(("Tab", "from the rows to the detail, and back"))
        self._sections[0][1].append(
            (
                "mouse",
                "click a row, twice for its detail; a title, to sort by it (rows stay in the order"
                " of time: their titles open the columns); a key in the bottom line; the wheel"
                " scrolls",
            )
        )

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(id="help-text", markup=False)
        yield Input(id="help-find", placeholder="text to search for", compact=True)

    def on_mount(self) -> None:
        box = self.query_one("#help")
        box.border_title = "ipttrace"
        box.border_subtitle = "/: search  Esc: back"
        self.query_one(Input).display = False
        box.focus()
        self._fill()

    def on_resize(self, event: events.Resize) -> None:
        self._fill()

    def action_find(self) -> None:
        """Shows only lines with a text that the user types."""
        find = self.query_one(Input)
        find.display = True
        find.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._fill()
        self.query_one("#help").scroll_home(animate=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one("#help").focus()

    def _tables(self) -> list[tuple[str, Sequence[tuple[str, str]]]]:
        """All sections: those of the view that help was opened from come first."""
        keys = dict(self._sections)
        found: dict[str, Sequence[tuple[str, str]]] = {}
        for view in dict.fromkeys((self._view, "trace", *help_words.VIEWS)):
            title, columns, lines = help_words.VIEWS[view]
            found[title] = keys.get(title, ())
            found[columns] = lines
        return [*found.items(), *(one for one in keys.items() if one[0] not in found)]

    def _fill(self) -> None:
        # As in app.tcss: 90% of the screen and at most 110 cells, without border,
        # padding and scroll bar.
        width = min(110, self.app.size.width * 9 // 10) - 8
        wanted = self.query_one(Input).value.casefold()
        parts: list[Part] = []
        queries = [(with_keys(name, self._keymap), meaning) for name, meaning in help_words.QUERY]
        tables = [*self._tables(), ("Queries", queries), ("Bars", help_words.BARS)]
        for title, lines in tables:
            lines = [(name, with_keys(meaning, self._keymap)) for name, meaning in lines]
            some = [one for one in lines if wanted in f"{one[0]} {one[1]}".casefold()]
            if some:
                parts += _table(title, some, width)
        if not wanted:
            about = with_keys(help_words.ROWS, self._keymap)
            text = textwrap.indent(textwrap.fill(about, max(20, width - 2)), "  ")
            parts += [("Rows", "bold $text-primary"), "\n", text, "\n"]
        self.query_one("#help-text", Static).update(
            Content.assemble(*(parts or [f"No line of the help contains: {wanted}"]))
        )
