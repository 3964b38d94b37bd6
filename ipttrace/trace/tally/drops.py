# SPDX-License-Identifier: GPL-2.0-only
"""Where packets died and why: drops by reason and place, and by rule, with their top flows.

A rule's drops are counted by the rule, whatever the kernel says of them.  Must not do I/O,
and must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.netfilter import IP_VERSIONS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.row import Step
from ipttrace.trace.rules import NO_TABLES, table_name
from ipttrace.trace.store import Names, Part
from ipttrace.trace.tally import clock as tally_clock
from ipttrace.trace.tally.row_facts import dropped, sequence
from ipttrace.trace.tally.slots import OTHER, Slots

LIMIT: Final = 1 << 12
_FLOWS: Final = 1 << 15  # pairs of a line and a flow
ORDERS: Final = ("drops", "rate", "last", "reason", "where", "netns", "host")

_INTERVAL: Final = 500_000_000  # ns that a cell of the ring counts
_RING: Final = 8
_WINDOW: Final = 4  # intervals that a rate covers

# Of a line's first row.
_OF_ROW: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "host": ("u1", ()),
    "netns": ("u4", ()),
    "what": ("u1", ()),  # 0: a rule
    "reason": ("u4", ()),  # ids of Names; this and the next: 0 of a rule
    "place": ("u4", ()),
    "tables": ("u1", ()),  # these: of a rule
    "family": ("u1", ()),
    "table": ("u4", ()),
    "chain": ("u4", ()),
    "rulenum": ("u4", ()),
    "match": ("u1", ()),
}
_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = _OF_ROW | {
    "drops": ("i8", ()),
    "last": ("i8", ()),
    "seq": ("i8", ()),  # of the newest row
    "marks": ("i8", (_RING,)),
    "recent": ("i8", (_RING,)),
}
_BY_RULE: Final = ("table", "chain", "rulenum")


@dataclass(frozen=True, slots=True)
class Drop:
    """One reason and place, or one rule.  Text is safe for a terminal."""

    key: Hashable
    host: int
    netns: int
    reason: str  # the kernel's; "" of a rule, or if it is unknown
    place: str
    table: str  # of a rule; "" otherwise
    step: Step | None  # of a rule, if it is known
    by_rule: bool
    drops: int
    rate: float  # per second
    last: int  # ns since the epoch
    seq: int  # the newest row
    flow: int  # with the most drops; 0: unknown
    flow_drops: int
    flow_seq: int  # its newest row


class DropsTally:
    """Counts of the `limit` reasons, places and rules that dropped last."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.slots = Slots(limit, _COLUMNS, ("drops",))
        self.version = 0  # increases with every part counted
        self.newest = 0  # time of the newest row, ns since the epoch
        columns: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (dtype, ()) for name, dtype in (("line", "u8"), ("flow", "u8"))
        }
        columns |= {"drops": ("i8", ()), "seq": ("i8", ())}
        self._flows = Slots(_FLOWS, columns, ("drops",))
        self._hash = Hash(9)
        self._pair = Hash(4)

    def __len__(self) -> int:
        return len(self.slots)

    def feed(self, part: Part) -> None:
        """Count the rows of a part."""
        self.note_newest(part)
        rows = np.flatnonzero(dropped(part.columns))
        if not rows.size:
            return
        columns = {name: part.columns[name][rows] for name in _OF_ROW}
        rule = columns["what"] == 0
        for name in ("reason", "place"):
            columns[name] = np.where(rule, 0, columns[name])
        keys = self._keys(columns)
        slots, at, fresh = self.slots.assign(keys)
        held = self.slots.columns
        for name in _OF_ROW:
            held[name][fresh] = columns[name][at]
        times, seqs = part.columns["time"][rows], sequence(part)[rows]
        held["drops"] += np.bincount(slots, minlength=len(held["drops"]))
        np.maximum.at(held["last"], slots, times)
        np.maximum.at(held["seq"], slots, seqs)
        self._count_recent(slots, times // _INTERVAL)
        self._count_flows(keys, part.flows[rows], seqs)

    def note_newest(self, part: Part) -> None:
        """Rates are those up to the newest row of this part, which need not be counted."""
        if len(part):
            self.version += 1
            self.newest = max(self.newest, int(part.columns["time"].max()))

    def _keys(self, columns: dict[str, Array]) -> Array:
        kind = columns["host"].astype(np.uint32) | columns["what"].astype(np.uint32) << 8
        kind |= columns["tables"].astype(np.uint32) << 16
        kind |= columns["family"].astype(np.uint32) << 24
        words = [columns[name] for name in ("netns", "reason", "place", *_BY_RULE)]
        return self._hash.full([kind, *words, columns["match"].astype(np.uint32)])

    def _count_recent(self, slots: Array, intervals: Array) -> None:
        marks = self.slots.columns["marks"].reshape(-1)
        recent = self.slots.columns["recent"].reshape(-1)
        at = slots * _RING + intervals % _RING
        reused, good = tally_clock.claim(marks, at, intervals, _RING)
        recent[reused] = 0
        np.add.at(recent, at[good], 1)

    def _count_flows(self, keys: Array, flows: Array, seqs: Array) -> None:
        low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
        pairs = self._pair.full([keys >> high, keys & low, flows >> high, flows & low])
        slots, at, fresh = self._flows.assign(pairs)
        held = self._flows.columns
        held["line"][fresh], held["flow"][fresh] = keys[at], flows[at]
        held["drops"] += np.bincount(slots, minlength=len(held["drops"]))
        np.maximum.at(held["seq"], slots, seqs)

    @property
    def other(self) -> int:
        """Drops of the lines that are no longer counted."""
        return int(self.slots.columns["drops"][OTHER])

    def rates(self, slots: Array, now: int | None = None) -> Array:
        """Drops per second, float64 (n,), over the last two seconds before `now`.

        `now`: ns since the epoch; None: the time of the newest row.
        """
        held = self.slots.columns
        until = (self.newest if now is None else now) // _INTERVAL
        marks = held["marks"][slots]
        inside = (marks < until) & (marks >= until - _WINDOW)
        rates: Array = np.where(inside, held["recent"][slots], 0).sum(axis=1)
        return rates / (_WINDOW * _INTERVAL / 1e9)

    def top(self, order: str, count: int, names: Names, *, ascending: bool = False) -> list[Drop]:
        """The top `count` lines by one of ORDERS, largest first unless `ascending`."""
        live = self.slots.live
        if not len(live) or count < 1:
            return []
        rates = self.rates(live)
        found = self._drops(live, rates, names)
        found.sort(key=lambda drop: (-drop.drops, drop.reason, drop.place, drop.seq))
        found.sort(key=lambda drop: _value(drop, order), reverse=not ascending)
        return found[:count]

    def _drops(self, live: Array, rates: Array, names: Names) -> list[Drop]:
        held = self.slots.columns
        kinds = {name: held[name][live] for name in _OF_ROW}
        keys = self._keys(kinds)
        flows = self._top_flows(keys)
        return [
            self._drop(int(slot), float(rate), names, int(key), flows[at])
            for at, (slot, rate, key) in enumerate(
                zip(live.tolist(), rates.tolist(), keys.tolist(), strict=True)
            )
        ]

    def _top_flows(self, keys: Array) -> list[tuple[int, int, int]]:
        """Flow, drops and newest row of the flow with the most drops of each line.

        Of several with the most, the one whose newest row is the last.
        """
        live, held = self._flows.live, self._flows.columns
        if not len(live):
            return [(0, 0, -1)] * len(keys)
        lines, drops = held["line"][live], held["drops"][live]
        order = np.lexsort((held["seq"][live], drops, lines))
        ordered = lines[order]
        last = np.searchsorted(ordered, keys, "right") - 1
        known = (last >= 0) & (ordered[np.maximum(last, 0)] == keys)
        slots = live[order[np.maximum(last, 0)]]
        columns = (held[name][slots].tolist() for name in ("flow", "drops", "seq"))
        found = zip(*columns, known.tolist(), strict=True)
        return [(flow, some, seq) if there else (0, 0, -1) for flow, some, seq, there in found]

    def _drop(
        self, slot: int, rate: float, names: Names, key: int, flow: tuple[int, int, int]
    ) -> Drop:
        of = {name: int(self.slots.columns[name][slot]) for name in (*_OF_ROW, "drops", "last")}
        by_rule = of["what"] == 0 and of["tables"] != NO_TABLES
        step = None
        if by_rule and of["chain"]:
            match = of["match"]
            word = record.MATCHES[match] if match < len(record.MATCHES) else str(match)
            step = Step(names.text(of["chain"]), of["rulenum"], word)
        table = table_name(of["tables"], names.text(of["table"])) if by_rule else ""
        if by_rule and not of["tables"] and IP_VERSIONS.get(of["family"]) == 6:
            table = f"ip6 {table}"
        return Drop(
            key=key,
            host=of["host"],
            netns=of["netns"],
            reason=names.text(of["reason"]),
            place=names.text(of["place"]),
            table=table,
            step=step,
            by_rule=by_rule,
            drops=of["drops"],
            rate=rate,
            last=of["last"],
            seq=int(self.slots.columns["seq"][slot]),
            flow=flow[0],
            flow_drops=flow[1],
            flow_seq=flow[2],
        )


def _value(drop: Drop, order: str) -> float | str:
    if order == "where":
        step = drop.step
        return drop.place or (f"{drop.table} {step.chain} {step.rulenum:9}" if step else drop.table)
    value: float | str = getattr(drop, order)
    return value
