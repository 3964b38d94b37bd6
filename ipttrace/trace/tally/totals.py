# SPDX-License-Identifier: GPL-2.0-only
"""Totals: verdicts per second, hooks and tables, protocols, costs, losses.

Per-second counts use the rows' timestamps and kept for ten minutes.  Must not do I/O,
and must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, UNKNOWN_HOOK
from ipttrace.trace.arrays import Array
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.store import Names, Part
from ipttrace.trace.tally import clock as tally_clock
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.row_facts import (
    OUTCOMES,
    begins_journey,
    capped_costs,
    cost_known,
    outcomes,
)
from ipttrace.trace.tally.slots import Slots

SECONDS: Final = 600

_SECOND: Final = 1_000_000_000
# More than SECONDS, so that the newest second never overwrites one that is shown.
_RING: Final = 640
_HOOKS: Final = 512  # pairs of hook and table

# Counted each second besides outcomes.  `costed`: rows whose cost is known.
SERIES: Final = ("packets", "cost_ns", "costed", "lost", "missed")

_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "tables": ("u1", ()),  # NFPROTO_* of the nftables table; 0: legacy
    "family": ("u1", ()),
    "hook": ("u1", ()),
    "table": ("u4", ()),
    "outcomes": ("i8", (len(OUTCOMES),)),
    "costs": ("u4", (tally_costs.BUCKETS,)),
}
_OF_HOOK: Final = ("tables", "family", "hook", "table")


@dataclass(frozen=True, slots=True)
class HookTotals:
    """Rows of one table at one hook.  Costs are NaN if none is known."""

    tables: int  # NFPROTO_* of the nftables table; 0: legacy
    family: int
    hook: str  # "": unknown
    table: str
    rows: int
    drops: int
    p50_ns: float
    p99_ns: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """Rows, packets and the packets' bytes of one protocol."""

    proto: str  # "": unreadable
    rows: int
    packets: int
    bytes: int
    drops: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """Counts of the last n seconds, oldest first; the last second is not over yet.

    Arrays are int64 of shape (n,): `outcomes` by the names in OUTCOMES, `series` by
    those in SERIES.  `newest`: the last second, s since the epoch.
    """

    newest: int
    outcomes: dict[str, Array]
    series: dict[str, Array]


class TotalsTally:
    """Sums over all rows, and per second over the last ten minutes."""

    def __init__(self) -> None:
        self.version = 0  # increases with every change
        self.rows = 0
        self.packets = 0
        self.lost = 0
        self.missed = 0
        self.newest = 0  # time of the newest row, ns since the epoch
        self.outcomes: Array = np.zeros(len(OUTCOMES), np.int64)
        self.costs: Array = np.zeros(tally_costs.BUCKETS, np.int64)
        self._marks: Array = np.full(_RING, -1, np.int64)
        self._outcomes: Array = np.zeros((_RING, len(OUTCOMES)), np.int64)
        self._series: dict[str, Array] = {name: np.zeros(_RING, np.int64) for name in SERIES}
        self._hooks = Slots(_HOOKS, _COLUMNS, ("outcomes", "costs"))
        # Rows, packets, bytes and drops by protocol number; 256: unreadable.
        self._protocols: Array = np.zeros((4, 257), np.int64)
        self._books: dict[int, tuple[int, int]] = {}

    def feed(self, part: Part) -> None:
        """Count the rows of a part."""
        if not len(part):
            return
        self.version += 1
        columns = part.columns
        self.rows += len(part)
        self.newest = int(columns["time"].max())
        begins, known = begins_journey(columns), cost_known(columns)
        self.packets += int(np.count_nonzero(begins))
        by_outcome = outcomes(columns)
        self.outcomes += np.bincount(by_outcome, minlength=len(OUTCOMES))
        costs = tally_costs.buckets(columns["cost"])
        self.costs += np.bincount(costs[known], minlength=tally_costs.BUCKETS)
        self._count_seconds(columns, by_outcome, begins, known)
        self._count_hooks(columns, by_outcome, costs, known)
        self._count_protocols(columns, by_outcome, begins)

    def note_newest(self, part: Part) -> None:
        """The seconds end at the newest row of this part, which is not counted."""
        if len(part):
            self.version += 1
            self.newest = int(part.columns["time"].max())

    def _count_seconds(
        self, columns: dict[str, Array], by_outcome: Array, begins: Array, known: Array
    ) -> None:
        second = columns["time"] // _SECOND
        at = second % _RING
        good = self._claim(at, second)
        if not good.all():
            at, by_outcome, begins, known = at[good], by_outcome[good], begins[good], known[good]
        cost = capped_costs(columns)[good][known]
        flat = np.bincount(at * len(OUTCOMES) + by_outcome, minlength=_RING * len(OUTCOMES))
        self._outcomes += flat.reshape(_RING, len(OUTCOMES))
        self._series["packets"] += np.bincount(at[begins], minlength=_RING)
        self._series["costed"] += np.bincount(at[known], minlength=_RING)
        np.add.at(self._series["cost_ns"], at[known], cost)

    def _claim(self, at: Array, second: Array) -> Array:
        """Clear the cells `at` that held another second; which of them may be counted."""
        reused, good = tally_clock.claim(self._marks, at, second, _RING)
        if len(reused):
            self._outcomes[reused] = 0
            for series in self._series.values():
                series[reused] = 0
        return good

    def _count_hooks(
        self, columns: dict[str, Array], by_outcome: Array, costs: Array, known: Array
    ) -> None:
        inside = columns["what"] == 0
        if not inside.all():
            columns = {name: columns[name][inside] for name in _OF_HOOK}
            by_outcome, costs, known = by_outcome[inside], costs[inside], known[inside]
        key = columns["tables"].astype(np.uint64) << np.uint64(48)
        key |= columns["table"].astype(np.uint64) << np.uint64(16)
        key |= columns["family"].astype(np.uint64) << np.uint64(8)
        key |= columns["hook"]
        slots, at, fresh = self._hooks.assign(key)
        held = self._hooks.columns
        for name in _OF_HOOK:
            held[name][fresh] = columns[name][at]
        np.add.at(held["outcomes"].reshape(-1), slots * len(OUTCOMES) + by_outcome, 1)
        at = (slots * tally_costs.BUCKETS + costs)[known]
        np.add.at(held["costs"].reshape(-1), at, np.uint32(1))

    def _count_protocols(self, columns: dict[str, Array], by_outcome: Array, begins: Array) -> None:
        proto = columns["proto"].astype(np.intp)
        proto[(proto < 0) | (proto > 255)] = 256
        counted = self._protocols
        counted[0] += np.bincount(proto, minlength=257)
        first = proto[begins]
        counted[1] += np.bincount(first, minlength=257)
        np.add.at(counted[2], first, columns["len"][begins].astype(np.int64))
        counted[3] += np.bincount(proto[by_outcome == DROP], minlength=257)

    def note_books(self, host: int, books: Mapping[str, Any]) -> None:
        """Add the increase of `lost` and `missed` since the host's last books.

        It counts for the newest second.
        """
        stations = books.get("stations", {})
        lost = sum(books.get("lost", ())) + stations.get("lost", 0)
        missed = books.get("missed", 0) + stations.get("missed", 0)
        before = self._books.get(host, (0, 0))
        if (lost, missed) == before:
            return
        self._books[host] = lost, missed
        more = max(lost - before[0], 0), max(missed - before[1], 0)
        self.version += 1
        self.lost += more[0]
        self.missed += more[1]
        second = np.array([self.newest // _SECOND], np.int64)
        if self._claim(second % _RING, second).all():
            for name, count in zip(("lost", "missed"), more, strict=True):
                # Unlike Python's integers, int64 cannot hold every number that a stream may claim.
                self._series[name][second % _RING] += min(count, 1 << 48)

    def seconds(self, count: int = SECONDS, now: int | None = None) -> Seconds:
        """The last `count` seconds, up to the newest row or `now` (ns since the epoch)."""
        newest = (self.newest if now is None else max(now, self.newest)) // _SECOND
        second = np.arange(newest - min(count, SECONDS) + 1, newest + 1)
        at = second % _RING
        held = self._marks[at] == second
        counts = np.where(held[:, None], self._outcomes[at], 0)
        return Seconds(
            newest,
            {name: counts[:, number] for number, name in enumerate(OUTCOMES)},
            {name: np.where(held, series[at], 0) for name, series in self._series.items()},
        )

    def hooks(self, names: Names) -> list[HookTotals]:
        """Totals of each table at each hook: by family, hook, then most rows first."""
        live, held = self._hooks.live, self._hooks.columns
        p50, p99 = (tally_costs.quantiles(held["costs"][live], share) for share in (0.5, 0.99))
        found = []
        for number, slot in enumerate(live.tolist()):
            family, hook = int(held["family"][slot]), int(held["hook"][slot])
            found.append(
                HookTotals(
                    int(held["tables"][slot]),
                    IP_VERSIONS.get(family, family),
                    _hook_name(hook),
                    names.text(int(held["table"][slot])),
                    int(held["outcomes"][slot].sum()),
                    int(held["outcomes"][slot, DROP]),
                    float(p50[number]),
                    float(p99[number]),
                )
            )
        return sorted(found, key=lambda one: (one.family, _hook_order(one.hook), -one.rows))

    def protocols(self) -> list[Protocol]:
        """Totals of each protocol, most rows first."""
        found = []
        for number in np.flatnonzero(self._protocols[0]).tolist():
            rows, packets, size, drops = self._protocols[:, number].tolist()
            name = ip.proto_name(number) if number < 256 else ""
            found.append(Protocol(name, rows, packets, size, drops))
        return sorted(found, key=lambda one: -one.rows)

    def quantile(self, share: float) -> float:
        """The `share` quantile of all rows' costs in ns; NaN if none is known."""
        return float(tally_costs.quantiles(self.costs[None], share)[0])


def _hook_name(hook: int) -> str:
    if hook == UNKNOWN_HOOK:
        return ""
    return HOOKS[hook] if hook < len(HOOKS) else str(hook)


def _hook_order(name: str) -> int:
    return HOOKS.index(name) if name in HOOKS else len(HOOKS)
