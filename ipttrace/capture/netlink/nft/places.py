# SPDX-License-Identifier: GPL-2.0-only
"""Where in its ruleset an event was: rule number, hook, priority, generation.

nftables tells of a rule by its handle.  Handles are never used again while a table
lives, but a table that is made anew begins again: so each generation of the ruleset
has a snapshot of its own, and where two could be meant, nothing is said.  Must not
do I/O.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.nft.decode import Place, Places
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.netfilter import ARP_HOOKS, NFPROTO_ARP, UNKNOWN_HOOK

# Between the moment when new rules take effect and that when it is told, ns.
SWAP: Final = 10_000_000
_MOST: Final = 64  # generations that are remembered
_MOST_FOUND: Final = 1 << 16


class Spot(NamedTuple):
    """`rulenum` 0, `hook` UNKNOWN_HOOK, `ruleset` 0: not known."""

    rulenum: int
    hook: int
    priority: int
    ruleset: int


_NOWHERE: Final = Spot(0, UNKNOWN_HOOK, 0, 0)


class Generations:
    """The snapshots of a namespace's nftables ruleset, by generation."""

    def __init__(self, first: Snapshot, number: int) -> None:
        """`number`: what the stream calls this generation."""
        self._order: list[int] = [first.genid]
        self._snapshots: dict[int, Snapshot] = {first.genid: first}
        self._numbers: dict[int, int] = {first.genid: number}
        self._told: dict[int, int] = {}  # when each was first told of, ns
        self._numbered: dict[tuple[int, Place], dict[int, int]] = {}
        self._found: dict[tuple[int, int, int, int], Spot] = {}

    @property
    def newest(self) -> Snapshot | None:
        """Of the newest generation, None where it is not known."""
        return self._snapshots.get(self._order[-1])

    def change(self, genid: int, told: int, number: int, snapshot: Snapshot | None) -> None:
        """A new generation, first told of at `told`; `snapshot`: what there is now."""
        if genid not in self._numbers:
            self._order.append(genid)
            self._numbers[genid] = number
            self._told[genid] = told
        if snapshot is not None and snapshot.genid in self._numbers:
            self._snapshots[snapshot.genid] = snapshot
        for old in self._order[:-_MOST]:
            self._numbers.pop(old, None)
            self._snapshots.pop(old, None)
            self._told.pop(old, None)
        self._order = self._order[-_MOST:]
        self._numbered.clear()
        self._found.clear()

    def locate(self, events: Array, places: Places) -> None:
        """Fills in `rulenum`, `hook`, `priority` and `ruleset`."""
        if not len(events):
            return
        after = np.zeros(len(events), np.uint32)
        for old, new in zip(self._order, self._order[1:], strict=False):
            near = (events["generation"] == old) & (events["time"] + SWAP >= self._told[new])
            after[near] = new
        keys = np.zeros(
            len(events), [("generation", "u4"), ("after", "u4"), ("place", "u8"), ("handle", "u8")]
        )
        keys["generation"], keys["after"] = events["generation"], after
        keys["place"], keys["handle"] = events["place"], events["handle"]
        words = keys.view(np.uint64).reshape(len(events), 3)
        with np.errstate(over="ignore"):
            hashed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]
            hashed = hashed * np.uint64(0xC2B2AE3D27D4EB4F) ^ words[:, 2]
            hashed *= np.uint64(0x9E3779B97F4A7C15)
        _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
        spots = np.array(
            [self._spot(key, places) for key in keys[first].tolist()], np.int64
        ).reshape(-1, 4)[inverse]
        for column, name in enumerate(Spot._fields):
            events[name] = spots[:, column]

    def _spot(self, key: tuple[int, int, int, int], places: Places) -> Spot:
        """`key`: generation, the one after it, place, handle."""
        generation, after, number, handle = key
        spot = self._found.get(key)
        if spot is None:
            if len(self._found) > _MOST_FOUND:
                self._found.clear()
            place = places.all[number]
            spot = self._found[key] = self._search(generation, after, place, handle)
        return spot

    def _search(self, generation: int, after: int, place: Place, handle: int) -> Spot:
        here = self._in(generation, place, handle)
        known = generation in self._snapshots
        if known and after in self._snapshots:
            there = self._in(after, place, handle)
            if here is None or not here.rulenum:
                return there or here or _NOWHERE
            if there is None or not there.rulenum or self._same(generation, after, place):
                return here
            # The same handle in a table that was made anew: one rule or the other.
            rulenum = here.rulenum if here.rulenum == there.rulenum else 0
            return here._replace(rulenum=rulenum, ruleset=0)
        if not after and here is not None and here.rulenum:
            return here
        at = self._order.index(generation) if generation in self._order else len(self._order)
        before = [one for one in reversed(self._order[:at]) if one in self._snapshots][:1]
        later = [one for one in self._order[at + 1 :] if one in self._snapshots][:1]
        if known and not after:
            # A run that had begun before, or rules of which we were told too late.
            for one in before + later:
                there = self._in(one, place, handle)
                if there is not None and there.rulenum:
                    return there._replace(ruleset=0)
            return here or _NOWHERE
        # It was gone before it was read: what those around it do not agree on is not known.
        sides = ([generation] if known else before) + later
        near = [self._in(one, place, handle) for one in sides]
        found = [one for one in near if one is not None]
        numbers = {0 if one is None else one.rulenum for one in near}
        if not found:
            return _NOWHERE
        if (
            len(found) == 2
            and len(numbers) == 1
            and found[0].rulenum
            and self._same(sides[0], sides[1], place)
        ):
            return found[0]  # a handle does not come again: it was there all the time
        return found[0]._replace(ruleset=0, rulenum=numbers.pop() if len(numbers) == 1 else 0)

    def _same(self, one: int, other: int, place: Place) -> bool:
        key = (place.family, text(place.table))
        tables = [self._snapshots[each].tables.get(key) for each in (one, other)]
        return (
            tables[0] is not None
            and tables[1] is not None
            and (tables[0].handle == tables[1].handle)
        )

    def _in(self, generation: int, place: Place, handle: int) -> Spot | None:
        """What that generation's snapshot says; None where there is none, or no such chain."""
        snapshot = self._snapshots.get(generation)
        if snapshot is None:
            return None
        info = snapshot.chains.get((place.family, text(place.table), text(place.chain)))
        if info is None:
            return None
        rulenum = len(info.handles) + 1
        if handle:
            rulenum = self._rulenums(generation, place, info).get(handle, 0)
        hook = UNKNOWN_HOOK if info.hook is None else info.hook
        if place.family == NFPROTO_ARP:
            hook = ARP_HOOKS.get(hook, UNKNOWN_HOOK)
        return Spot(rulenum, hook, info.priority or 0, self._numbers[generation])

    def _rulenums(self, generation: int, place: Place, info: ChainInfo) -> dict[int, int]:
        key = (generation, place)
        if key not in self._numbered:
            self._numbered[key] = {one: at for at, one in enumerate(info.handles, 1)}
        return self._numbered[key]


def text(name: bytes) -> str:
    """A name as snapshots have it."""
    return name.decode("utf-8", "surrogateescape")
