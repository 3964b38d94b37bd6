# SPDX-License-Identifier: GPL-2.0-only
"""The drops view: where packets die and why, by the kernel's reasons and places, and by rules.

Below each line is what it means, with what to look at next.  Must not count: it shows a
`DropsTally`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

from textual.binding import Binding, BindingType

from ipttrace.trace.drops import explain
from ipttrace.trace.query import from_row
from ipttrace.trace.row import Row
from ipttrace.trace.store import Store
from ipttrace.trace.tally.drops import Drop, DropsTally
from ipttrace.tui.cells import Cell, Cells, column, endpoints, fit_tail, fold, spread, title
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FilterRequested, Notice
from ipttrace.tui.rows import filter_words
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import REVERSE, SortedLedger, fitting, used

SHOWN: Final = 200

# From left to right: title, width.
_COLUMNS: Final[dict[str, tuple[str, int]]] = {
    "drops": ("drops", 6),
    "rate": ("/s", 6),
    "last": ("ago", 4),
    "host": ("host", 10),
    "netns": ("netns", 10),
    "reason": ("reason", 15),
    "where": ("place or rule", 26),
    "flow": ("flow with the most drops", 32),
}
_ALWAYS: Final = ("drops", "rate", "last", "netns", "reason", "where")
# What additional room is spent on, in this order: another column, or a column's new width.
_STEPS: Final[tuple[tuple[str, int], ...]] = (
    ("host", 10),
    ("flow", 32),
    ("reason", 20),
    ("where", 34),
    ("flow", 45),
    ("netns", 16),
    ("where", 44),
    ("flow", 70),
)
_LEFT: Final = ("host", "netns", "reason", "where", "flow")
_INDENT: Final = 7
_MOST_LINES: Final = 4  # of a sentence
_EMPTY: Final = (
    "  No packet was dropped yet: neither by a rule, nor by the kernel outside the tables.",
)
_NONE: Final = "  No row that matches the filter is a drop."
_RULES_ONLY: Final = "  Only drops of rules are seen"
_NO_DROPS: Final = "drops outside the tables are not recorded in this stream"

Line = tuple[Hashable, int]
"""A line of text below a line of figures: its key, and its number."""


class DropsView(SortedLedger):
    """The view."""

    SORTS = ("drops", "rate", "last", "reason")
    ASCENDING = ("host", "netns", "reason", "where")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "filter", "Rows", key_display="⏎", tooltip="the rows of these drops"),
        Binding(
            "s",
            "sort",
            "Sort",
            tooltip="by drops, drops per second, the newest first, or reason",
            id="sort",
        ),
        REVERSE,
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tally: DropsTally | None = None
        self._store: Store | None = None
        self._netns: Mapping[tuple[int, int], str] = {}
        self._hosts: Sequence[str] = ()
        self._unseen = ""
        self._version: Hashable = None
        self._drops: dict[Hashable, Drop] = {}
        self._rows: dict[int, Row] = {}  # that the lines are about, by number
        self._texts: dict[Hashable, list[str]] = {}
        self._columns: dict[str, int] = {}

    def show(
        self,
        tally: DropsTally,
        store: Store,
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str] = (),
        unseen: str = "",
    ) -> None:
        """Show the tally; does nothing if nothing has changed.

        `store`: that was counted; `netns`: names of namespaces by host and inode; `hosts`:
        names by number, if there are several; `unseen`: why drops outside the tables are not
        recorded, "" if they are; all safe for a terminal.
        """
        version = (tally.version, dict(netns), tuple(hosts), unseen)
        if tally is self._tally and version == self._version:
            return
        self._tally, self._store, self._version = tally, store, version
        self._netns, self._hosts, self._unseen = netns, hosts, unseen
        self.changed()

    def action_filter(self) -> None:
        drop = self._drops.get(self.picked)
        row = None if drop is None else self._rows.get(drop.seq)
        if drop is None or row is None:
            self.post_message(Notice("no drop under the cursor whose row is held", error=True))
            return
        words = filter_words.drop(row)
        self.post_message(FilterRequested(from_row.by_drop(row), words, replace=True))

    # Lines.

    def refill(self) -> Sequence[Hashable]:
        self._drops, self._texts = {}, {}
        if self._tally is None or self._store is None:
            return [_EMPTY[0]]
        tally, store = self._tally, self._store
        ascending = (self.sort in self.ASCENDING) != self.reversed
        top = tally.top(self.sort, SHOWN, store.names, ascending=ascending)
        self._drops = {drop.key: drop for drop in top}
        wanted = sorted({seq for drop in top for seq in (drop.seq, drop.flow_seq) if seq >= 0})
        self._rows = {row.index: row for row in store.rows(wanted)}
        self._columns = self._choose_columns()
        lines: list[Hashable] = []
        for drop in top:
            lines.append(drop.key)
            self._texts[drop.key] = self._sentence(drop)
            lines += [(drop.key, at) for at in range(len(self._texts[drop.key]))]
        if not top:
            lines += [_NONE] if self.about else _EMPTY
        if tally.other:
            lines.append(f"  {tally.other:,} drops for older reasons are no longer listed")
        if self._unseen:
            lines += [""] if top else []
            lines += [f"  {text}" for text in fold(self._why_unseen, max(self.width - 2, 20), 4)]
        return lines

    @property
    def _why_unseen(self) -> str:
        return f"{_RULES_ONLY.strip()}: {self._unseen}"

    def _sentence(self, drop: Drop) -> list[str]:
        row = self._rows.get(drop.seq)
        if row is None:
            return []
        if drop.by_rule:
            text = row.rule or ""
        else:
            text = explain(row, self._netns.get((row.host, row.netns)))
        return fold(text, max(self.width - _INDENT, 20), _MOST_LINES)

    def pickable(self, key: Hashable) -> bool:
        return key in self._drops

    def below(self, key: Hashable) -> int:
        return len(self._texts.get(key, ()))

    # Columns.

    def _choose_columns(self) -> dict[str, int]:
        least = {name: _COLUMNS[name][1] for name in _ALWAYS}
        steps = [step for step in _STEPS if step[0] != "host" or len(self._hosts) > 1]
        chosen = fitting(least, steps, self.width)
        # The last column gets the rest.
        last = "flow" if "flow" in chosen else "where"
        chosen[last] = max(9, chosen[last] + self.width - used(chosen))
        return {name: chosen[name] for name in _COLUMNS if name in chosen}

    def heading(self) -> list[Cells]:
        name = {"last": "newest", "rate": "drops per second"}.get(self.sort, self.sort)
        by = with_keys("{sort} by", chosen(self))
        right = f"  {by} {name}{', reversed' if self.reversed else ''} "
        total = sum(drop.drops for drop in self._drops.values())
        line = spread(f" Drops {total:,}{self.about}", right, self.width)
        titles = [
            title(
                _COLUMNS[name][0], width, self.mark if name == self.sort else "", name not in _LEFT
            )
            for name, width in self._columns.items()
        ]
        return [[(line, "title")], titles]

    def orders(self) -> Sequence[str]:
        return [name if name != "flow" else "" for name in self._columns]

    def cells(self, key: Hashable) -> Cells:
        drop = self._drops.get(key)
        if drop is not None:
            return [self._cell(name, width, drop) for name, width in self._columns.items()]
        if isinstance(key, tuple) and len(key) == 2 and key[0] in self._texts:
            return [(" " * _INDENT + self._texts[key[0]][int(key[1])], "value")]
        return [(str(key), "dim")]

    def _cell(self, name: str, width: int, drop: Drop) -> Cell:
        newest = 0 if self._tally is None else self._tally.newest
        if name == "drops":
            return column(figures.count(drop.drops), width, "drop")
        if name == "rate":
            return column(figures.rate(drop.rate) if drop.rate else "", width)
        if name == "last":
            return column(figures.span((newest - drop.last) / 1e9), width, "dim")
        if name == "host":
            known = drop.host < len(self._hosts)
            text = self._hosts[drop.host] if known else str(drop.host)
            return column(text, width, "dim", right=False)
        if name == "netns":
            netns = self._netns.get((drop.host, drop.netns)) or fit_tail(str(drop.netns), width)
            return column(netns, width, "dim", right=False)
        if name == "reason":
            return column(_reason(drop), width, "chain", right=False)
        if name == "where":
            return column(_where(drop), width, "text", right=False)
        return column(self._flow(drop, width), width, "dim", right=False)

    def _flow(self, drop: Drop, width: int) -> str:
        row = self._rows.get(drop.flow_seq)
        if row is None or not drop.flow:
            return ""
        share = figures.share(drop.flow_drops / max(drop.drops, 1))
        ends = endpoints(row.src, row.sport, row.dst, row.dport, max(width - 5, 9))
        return f"{share:>4} {ends}"


def _reason(drop: Drop) -> str:
    if drop.by_rule:
        return "policy" if drop.step is not None and drop.step.match == "policy" else "rule"
    return drop.reason or "unknown"


def _where(drop: Drop) -> str:
    if not drop.by_rule:
        return drop.place or "unknown"
    step = drop.step
    if step is None:
        return f"{drop.table} ?"
    number = "" if step.match == "policy" else f" {step.rulenum or '?'}"
    return f"{drop.table} {step.chain}{number}"
