# SPDX-License-Identifier: GPL-2.0-only
"""Totals: verdicts by second, hooks and tables, protocols, costs, and what was lost.

Seconds are those of the rows' own time, for ten minutes.  Must not do I/O, and
must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, UNKNOWN_HOOK, VERDICTS
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.store import Part
from ipttrace.trace.store.names import Names
from ipttrace.trace.store.schema import NETLINK
from ipttrace.trace.tally import clock as tally_clock
from ipttrace.trace.tally import costs as tally_costs
from ipttrace.trace.tally.slots import Slots

SECONDS: Final = 600
ENDS: Final = (*VERDICTS, "other")

_SECOND: Final = 1_000_000_000
# More than are read, so that the newest one never pushes out what is shown.
_RING: Final = 640
_PLACES: Final = 512  # pairs of table and hook
_HOST_SHIFT: Final = np.uint64(56)
_MOST_NS: Final = np.uint64(1 << 50)

# What is counted each second, beside how calls ended.
# `costed`: rows whose cost is known.
SERIES: Final = ("packets", "cost_ns", "costed", "lost", "missed")

_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "tables": ("u1", ()),  # of nftables: NFPROTO_* of the table; 0: legacy
    "family": ("u1", ()),
    "hook": ("u1", ()),
    "table": ("u4", ()),
    "ends": ("i8", (len(ENDS),)),
    "costs": ("u4", (tally_costs.BUCKETS,)),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A table at a hook.  Costs are NaN where there are none."""

    tables: int  # of nftables: NFPROTO_* of the table's family; 0: legacy
    family: int
    hook: str  # "": not known
    table: str
    rows: int
    drops: int
    p50_ns: float
    p99_ns: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """Rows, and packets and their bytes, of one protocol."""

    proto: str  # "": not readable
    rows: int
    packets: int
    bytes: int
    drops: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """The last seconds, oldest first; the last one is not over yet.

    Arrays int64 of shape (n,): `ends` by the names of ENDS, `series` by those
    of SERIES.  `newest`: the last second, s since the epoch.
    """

    newest: int
    ends: dict[str, Array]
    series: dict[str, Array]


class TotalsTally:
    """Sums over all rows, and by second over the last ten minutes."""

    def __init__(self) -> None:
        self.version = 0  # rises with whatever is counted
        self.rows = 0
        self.packets = 0
        self.lost = 0
        self.missed = 0
        self.newest = 0  # time of the newest row, ns since the epoch
        self.ends: Array = np.zeros(len(ENDS), np.int64)
        self.costs: Array = np.zeros(tally_costs.BUCKETS, np.int64)
        self._marks: Array = np.full(_RING, -1, np.int64)
        self._ends: Array = np.zeros((_RING, len(ENDS)), np.int64)
        self._series: dict[str, Array] = {name: np.zeros(_RING, np.int64) for name in SERIES}
        self._places = Slots(_PLACES, _COLUMNS, ("ends", "costs"))
        # By protocol; the last one is not readable.
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
        begins = columns["call"] | columns["host"].astype(np.uint64) << _HOST_SHIFT
        begins = begins == columns["journey"]
        self.packets += int(np.count_nonzero(begins))
        ends = np.minimum(columns["verdict"] & 0xFF, len(ENDS) - 1).astype(np.intp)
        self.ends += np.bincount(ends, minlength=len(ENDS))
        costs = tally_costs.buckets(columns["cost"])
        told = columns["engine"] != NETLINK  # what it cost
        self.costs += np.bincount(costs[told], minlength=tally_costs.BUCKETS)
        self._count_seconds(columns, ends, begins, told)
        self._count_places(columns, ends, costs, told)
        self._count_protocols(columns, ends, begins)

    def _count_seconds(
        self, columns: dict[str, Array], ends: Array, begins: Array, told: Array
    ) -> None:
        second = columns["time"] // _SECOND
        at = second % _RING
        good = self._claim(at, second)
        if not good.all():
            at, ends, begins, told = at[good], ends[good], begins[good], told[good]
        cost = np.minimum(columns["cost"], _MOST_NS)[good][told]
        flat = np.bincount(at * len(ENDS) + ends, minlength=_RING * len(ENDS))
        self._ends += flat.reshape(_RING, len(ENDS))
        self._series["packets"] += np.bincount(at[begins], minlength=_RING)
        self._series["costed"] += np.bincount(at[told], minlength=_RING)
        np.add.at(self._series["cost_ns"], at[told], cost.astype(np.int64))

    def _claim(self, at: Array, second: Array) -> Array:
        taken, good = tally_clock.claim(self._marks, at, second, _RING)
        if len(taken):
            self._ends[taken] = 0
            for series in self._series.values():
                series[taken] = 0
        return good

    def _count_places(
        self, columns: dict[str, Array], ends: Array, costs: Array, told: Array
    ) -> None:
        key = columns["tables"].astype(np.uint64) << np.uint64(48)
        key |= columns["table"].astype(np.uint64) << np.uint64(16)
        key |= columns["family"].astype(np.uint64) << np.uint64(8)
        key |= columns["hook"]
        slots, at, fresh = self._places.assign(key)
        held = self._places.columns
        for name in ("tables", "family", "hook", "table"):
            held[name][fresh] = columns[name][at]
        np.add.at(held["ends"].reshape(-1), slots * len(ENDS) + ends, 1)
        at = (slots * tally_costs.BUCKETS + costs)[told]
        np.add.at(held["costs"].reshape(-1), at, np.uint32(1))

    def _count_protocols(self, columns: dict[str, Array], ends: Array, begins: Array) -> None:
        proto = columns["proto"].astype(np.intp)
        proto[(proto < 0) | (proto > 255)] = 256
        counted = self._protocols
        counted[0] += np.bincount(proto, minlength=257)
        first = proto[begins]
        counted[1] += np.bincount(first, minlength=257)
        np.add.at(counted[2], first, columns["len"][begins].astype(np.int64))
        counted[3] += np.bincount(proto[ends == DROP], minlength=257)

    def note_books(self, host: int, books: Mapping[str, Any]) -> None:
        """Take in what a trace's books say by now: `lost` and `missed` so far.

        What has come on top since the last time counts for the newest second.
        """
        lost, missed = sum(books.get("lost", ())), books.get("missed", 0)
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
                # Only the first has room for whatever a stream claims.
                self._series[name][second % _RING] += min(count, 1 << 48)

    def seconds(self, count: int = SECONDS, now: int | None = None) -> Seconds:
        """The last `count` seconds, up to that of the newest row or of `now` (ns)."""
        newest = (self.newest if now is None else max(now, self.newest)) // _SECOND
        second = np.arange(newest - min(count, SECONDS) + 1, newest + 1)
        at = second % _RING
        held = self._marks[at] == second
        ends = np.where(held[:, None], self._ends[at], 0)
        return Seconds(
            newest,
            {name: ends[:, number] for number, name in enumerate(ENDS)},
            {name: np.where(held, series[at], 0) for name, series in self._series.items()},
        )

    def places(self, names: Names) -> list[Place]:
        """Tables at hooks that packets passed: in the order of families and hooks, by rows."""
        live, held = self._places.live, self._places.columns
        p50, p99 = (tally_costs.quantiles(held["costs"][live], share) for share in (0.5, 0.99))
        found = []
        for number, slot in enumerate(live.tolist()):
            family, hook = int(held["family"][slot]), int(held["hook"][slot])
            found.append(
                Place(
                    int(held["tables"][slot]),
                    IP_VERSIONS.get(family, family),
                    _hook_name(hook),
                    names.text(int(held["table"][slot])),
                    int(held["ends"][slot].sum()),
                    int(held["ends"][slot, DROP]),
                    float(p50[number]),
                    float(p99[number]),
                )
            )
        return sorted(found, key=lambda place: (place.family, _hook(place.hook), -place.rows))

    def protocols(self) -> list[Protocol]:
        """Protocols that came, most rows first."""
        found = []
        for number in np.flatnonzero(self._protocols[0]).tolist():
            rows, packets, size, drops = self._protocols[:, number].tolist()
            name = ip.proto_name(number) if number < 256 else ""
            found.append(Protocol(name, rows, packets, size, drops))
        return sorted(found, key=lambda one: -one.rows)

    def quantile(self, share: float) -> float:
        """ns that `share` of all rows did not cost more than; NaN before the first."""
        return float(tally_costs.quantiles(self.costs[None], share)[0])


def _hook_name(hook: int) -> str:
    if hook == UNKNOWN_HOOK:
        return ""
    return HOOKS[hook] if hook < len(HOOKS) else str(hook)


def _hook(name: str) -> int:
    return HOOKS.index(name) if name in HOOKS else len(HOOKS)
