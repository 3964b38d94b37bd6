# SPDX-License-Identifier: GPL-2.0-only
"""The flows view: the top flows by packets, drops, cost, bytes or time.

Must not count: it shows a `FlowsTally`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

from textual.binding import Binding, BindingType

from ipttrace.trace.store import Names
from ipttrace.trace.tally.flows import Flow, FlowsTally
from ipttrace.tui.cells import (
    VERDICT_MARKS,
    Cell,
    Cells,
    column,
    endpoints,
    fit,
    fit_tail,
    spread,
    title,
    verdict_cell,
)
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import FilterRequested, Notice
from ipttrace.tui.rows import filter_words
from ipttrace.tui.widgets import figures
from ipttrace.tui.widgets.ledger import REVERSE, SortedLedger, fitting, used

SHOWN: Final = 500

# From left to right: title, width.
_COLUMNS: Final[dict[str, tuple[str, int]]] = {
    "packets": ("packets", 7),
    "rows": ("rows", 6),
    "drops": ("drops", 6),
    "bytes": ("bytes", 6),
    "cost": ("cost", 6),
    "max_cost": ("max", 6),
    "host": ("host", 10),
    "netns": ("netns", 12),
    "last": ("ago", 4),
    "proto": ("proto", 6),
    "ends": ("source → destination", 28),
    "verdict": ("last verdict, or where dropped", 13),
}
_LONGEST: Final = 97
_ALWAYS: Final = ("packets", "drops", "bytes", "cost", "proto", "ends", "verdict")
# What additional room is spent on, in this order: another column, or a column's new width.
_STEPS: Final[tuple[tuple[str, int], ...]] = (
    ("ends", 37),
    ("verdict", 22),
    ("last", 4),
    ("max_cost", 6),
    ("host", 10),
    ("netns", 12),
    ("rows", 6),
    ("ends", 45),
    ("verdict", 32),
    ("ends", 61),
    ("ends", _LONGEST),
)
_LEFT: Final = ("host", "netns", "proto", "ends", "verdict")
_EMPTY: Final = "  No packets yet."
_NONE: Final = "  No row matches the filter."


class FlowsView(SortedLedger):
    """The view."""

    SORTS = ("packets", "drops", "cost", "bytes", "last")
    ASCENDING = _LEFT
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "filter", "Rows", key_display="⏎", tooltip="the rows of this flow"),
        Binding(
            "s",
            "sort",
            "Sort",
            tooltip="by packets, drops, cost, bytes, or the newest first",
            id="sort",
        ),
        REVERSE,
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tally: FlowsTally | None = None
        self._store_names: Names | None = None
        self._netns: Mapping[tuple[int, int], str] = {}
        self._hosts: Sequence[str] = ()
        self._now: int | None = None
        self._version: Hashable = None
        self._flows: dict[Hashable, Flow] = {}
        self._newest = 0
        self._columns: dict[str, int] = {}

    def show(
        self,
        tally: FlowsTally,
        names: Names,
        netns: Mapping[tuple[int, int], str],
        hosts: Sequence[str] = (),
        now: int | None = None,
    ) -> None:
        """Show the tally; does nothing if nothing has changed.

        `names`: the store's; `netns`: names of namespaces by host and inode;
        `hosts`: names by number, if there are several; all safe for a terminal.  `now`:
        ns since the epoch by the stream's clock; None: the time of the newest row.
        """
        version = (tally.version, now, dict(netns), tuple(hosts))
        if tally is self._tally and version == self._version:
            return
        self._tally, self._store_names, self._version = tally, names, version
        self._netns, self._hosts, self._now = netns, hosts, now
        self.changed()

    def action_filter(self) -> None:
        flow = self._flows.get(self.picked)
        if flow is None:
            self.post_message(Notice("no flow under the cursor", error=True))
        else:
            name = hex(flow.flow) if flow.flow else "none"
            words = filter_words.flow(flow.src, flow.sport, flow.dst, flow.dport)
            if not flow.flow:
                words = "packets without a known flow"
            self.post_message(FilterRequested(f"flow={name}", words, replace=True))

    # Lines.

    def refill(self) -> Sequence[Hashable]:
        if self._tally is None or self._store_names is None or not len(self._tally):
            self._flows = {}
            self._columns = self._choose_columns()
            return [_NONE if self.about else _EMPTY]
        top = self._tally.top(
            self.sort,
            SHOWN,
            self._store_names,
            ascending=(self.sort in self.ASCENDING) != self.reversed,
            netns=self._netns,
        )
        self._newest = max(flow.last for flow in top) if self._now is None else self._now
        if self.sort == "drops":
            top = [flow for flow in top if flow.drops]
        unknown = self.sort in ("cost", "max_cost") and all(flow.cost_ns is None for flow in top)
        self._flows = {} if unknown else {(flow.host, flow.flow): flow for flow in top}
        self._columns = self._choose_columns()
        if unknown:
            return ["  Cost is not known over netlink."]
        lines: list[Hashable] = list(self._flows)
        if not lines:
            lines.append("  Nothing was dropped.")
        more = len(self._tally) - len(top)
        if more > 0 and self.sort != "drops":
            lines.append(f"  and {more:,} more flows")
        if (other := self._tally.other).flows:
            lines.append(
                f"  {other.flows:,} older flows are no longer counted: {other.packets:,} packets,"
                f" {other.drops:,} drops"
            )
        return lines

    def pickable(self, key: Hashable) -> bool:
        return key in self._flows

    # Columns.

    def _choose_columns(self) -> dict[str, int]:
        least = {name: _COLUMNS[name][1] for name in _ALWAYS}
        steps = [step for step in _STEPS if step[0] != "host" or len(self._hosts) > 1]
        chosen = fitting(least, steps, self.width)
        # No wider than the content: the eye should not have to cross empty cells.
        longest = max((len(_ends(flow, _LONGEST)) for flow in self._flows.values()), default=0)
        chosen["ends"] = min(chosen["ends"], max(longest, _COLUMNS["ends"][1]))
        # The last column gets the rest.
        chosen["verdict"] += max(0, self.width - used(chosen))
        if used(chosen) > self.width:
            chosen["ends"] = max(9, chosen["ends"] + self.width - used(chosen))
        return {name: chosen[name] for name in _COLUMNS if name in chosen}

    def heading(self) -> list[Cells]:
        count = 0 if self._tally is None else len(self._tally)
        name = {"last": "newest", "ends": "source", "max_cost": "max"}.get(self.sort, self.sort)
        by = with_keys("{sort} by", chosen(self))
        right = f"  {by} {name}{', reversed' if self.reversed else ''} "
        line = spread(f" Flows {count:,}{self.about}", right, self.width)
        titles = []
        for name, width in self._columns.items():
            text = _COLUMNS[name][0]
            if name == "verdict" and len(text) > width:
                text = "last verdict"
            mark = self.mark if name == self.sort else ""
            titles.append(title(text, width, mark, name not in _LEFT))
        return [[(line, "title")], titles]

    def orders(self) -> Sequence[str]:
        return list(self._columns)

    def cells(self, key: Hashable) -> Cells:
        flow = self._flows.get(key)
        if flow is None:
            return [(str(key), "dim")]
        return [self._cell(name, width, flow) for name, width in self._columns.items()]

    def _cell(self, name: str, width: int, flow: Flow) -> Cell:
        if name == "drops":
            return column(figures.count(flow.drops) if flow.drops else "", width, "drop")
        if name in ("packets", "rows", "bytes"):
            return column(figures.count(getattr(flow, name)), width)
        if name == "cost":
            return column(_cost(flow.cost_ns), width)
        if name == "max_cost":
            return column(_cost(flow.max_cost_ns), width, "dim")
        if name == "last":
            return column(figures.span((self._newest - flow.last) / 1e9), width, "dim")
        if name == "proto":
            return column(flow.proto or "?", width, right=False)
        if name == "host":
            known = flow.host < len(self._hosts)
            text = self._hosts[flow.host] if known else str(flow.host)
            return column(text, width, "dim", right=False)
        if name == "netns":
            netns = self._netns.get((flow.host, flow.netns)) or fit_tail(str(flow.netns), width)
            return column(netns, width, "dim", right=False)
        if name == "ends":
            return column(_ends(flow, width), width, "text", right=False)
        return self._verdict(width, flow)

    def _verdict(self, width: int, flow: Flow) -> Cell:
        if not flow.drops:
            text, role = verdict_cell(flow.verdict)
            return column(text, width, role, right=False)
        # If an earlier packet was dropped and the last one was not, show both.
        marks = VERDICT_MARKS["DROP"]
        if flow.verdict != "DROP":
            marks = f"{VERDICT_MARKS.get(flow.verdict, '?')} {marks}"
        text = f"{marks} {flow.dropped_table or flow.dropped_why}"
        if (step := flow.dropped_at) is not None:
            number = ":policy" if step.match == "policy" else f":{step.rulenum}"
            # If there is little room, leave out the table, then cut the chain.
            room = width - len(text) - len(number) - 1
            if room < min(len(step.chain), 8):
                text = marks
                room = width - len(text) - len(number) - 1
            chain = step.chain if len(step.chain) <= room else fit(step.chain, max(room, 1))
            text += f" {chain}{number}"
        return column(text, width, "drop", right=False)


def _cost(ns: int | None) -> str:
    return "" if ns is None else figures.cost(ns)


def _ends(flow: Flow, width: int) -> str:
    if not flow.flow:
        return "packets without a known flow"
    return endpoints(flow.src, flow.sport, flow.dst, flow.dport, width)
