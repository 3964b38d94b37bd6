# SPDX-License-Identifier: GPL-2.0-only
"""The dialog of columns: which are shown, in which order and how wide.

Must not write a file: it returns a `ColumnsChoice`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from ipttrace.tui.cells import Cells, fit
from ipttrace.tui.config.settings import WIDEST
from ipttrace.tui.rows.columns import COLUMNS
from ipttrace.tui.rows.layout import Wanted
from ipttrace.tui.widgets.ledger import Ledger

_HELP: Final = {column.key: column.help for column in COLUMNS}
_KEYS: Final = (
    "Space: show or hide   [ ]: move   + -: wider, narrower   a: automatic\n"
    "Enter: apply   w: apply and write to the config file   r: reset   Esc: back"
)


@dataclass(frozen=True, slots=True)
class ColumnsChoice:
    """The answer; `save`: write it to the config file."""

    columns: Wanted  # (): those that fit
    save: bool


@dataclass(slots=True)
class _Item:
    key: str
    shown: bool = True
    width: int | None = None


class ColumnList(Ledger):
    """The columns, with a cursor."""

    DEFAULT_CSS = """
    ColumnList { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "show", show=False),
        Binding("left_square_bracket", "move(-1)", show=False),
        Binding("right_square_bracket", "move(1)", show=False),
        Binding("plus,equals_sign", "resize(1)", show=False),
        Binding("minus", "resize(-1)", show=False),
        Binding("a", "automatic", show=False),
        Binding("r", "reset", show=False),
    ]

    def __init__(self, wanted: Wanted, placed: Mapping[str, int], at: str) -> None:
        """`placed`: the widths of the columns on the screen; `at`: where the cursor begins."""
        super().__init__(id="column-list")
        self._placed = placed
        chosen = [_Item(key, True, width) for key, width in wanted]
        named = {item.key for item in chosen}
        rest = [_Item(column.key, not wanted) for column in COLUMNS if column.key not in named]
        self._items = [*chosen, *rest]
        self._keys = self.refill()
        self._line = self._keys.index(at) if at in self._keys else 0
        self._moved = True

    @property
    def columns(self) -> Wanted:
        """The columns chosen; () if they are those of the beginning."""
        items = [(item.key, item.shown, item.width) for item in self._items]
        if items == [(column.key, True, None) for column in COLUMNS]:
            return ()
        return tuple((key, width) for key, shown, width in items if shown)

    # Lines.

    def refill(self) -> Sequence[Hashable]:
        return [item.key for item in self._items]

    def heading(self) -> list[Cells]:
        return []

    def cells(self, key: Hashable) -> Cells:
        item = next(item for item in self._items if item.key == key)
        mark = "x" if item.shown else " "
        width = "auto" if item.width is None else str(item.width)
        if item.shown and item.width is None and item.key not in self._placed:
            width = "left out"
        role = "text" if item.shown else "dim"
        return [
            (f" [{mark}] {item.key:<10} {width:>8}  ", role),
            (fit(_HELP[item.key], max(1, self.width - 26)), "dim"),
        ]

    # Keys and the mouse.

    @property
    def _item(self) -> _Item:
        return self._items[max(self._line, 0)]

    def _show(self) -> None:
        self._moved = True
        self.fill()

    def action_show(self) -> None:
        if not self._item.shown or sum(item.shown for item in self._items) > 1:
            self._item.shown = not self._item.shown
        self._show()

    def action_move(self, step: int) -> None:
        at = max(self._line, 0)
        if 0 <= at + step < len(self._items):
            self._items.insert(at + step, self._items.pop(at))
        self._show()  # the cursor stays on its column

    def action_resize(self, step: int) -> None:
        item = self._item
        width = self._placed.get(item.key, 10) if item.width is None else item.width
        item.width = min(max(width + step, 1), WIDEST)
        self._show()

    def action_automatic(self) -> None:
        self._item.width = None
        self._show()

    def action_reset(self) -> None:
        self._items = [_Item(column.key) for column in COLUMNS]
        self._show()

    def on_click(self, event: events.Click) -> None:
        """A second click shows or hides the column."""
        if event.chain == 2:
            self.action_show()


class ColumnsDialog(ModalScreen[ColumnsChoice | None]):
    """The dialog.  Enter and w return a choice, Escape None."""

    DEFAULT_CSS = """
    ColumnsDialog { align: center middle; }
    ColumnsDialog > Vertical {
        width: 96; max-width: 98%; height: auto; max-height: 100%; padding: 0 1;
        border: round $primary; background: $surface;
    }
    ColumnsDialog ColumnList { width: 100%; height: 14; }
    ColumnsDialog Static { width: 100%; height: auto; margin-top: 1; color: $foreground; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f2", "cancel", "Back"),
        Binding("enter", "use(False)", show=False),
        Binding("w", "use(True)", show=False),
    ]

    def __init__(self, wanted: Wanted, placed: Mapping[str, int], at: str = "") -> None:
        """See `ColumnList`."""
        super().__init__()
        self.list = ColumnList(wanted, placed, at)

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "columns, from left to right"
            yield self.list
            yield Static(_KEYS, markup=False)

    def on_mount(self) -> None:
        self.list.styles.height = len(COLUMNS)
        self.list.focus()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def action_use(self, save: bool) -> None:
        self.dismiss(ColumnsChoice(self.list.columns, save))
