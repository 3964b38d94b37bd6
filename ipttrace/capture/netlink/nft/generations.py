# SPDX-License-Identifier: GPL-2.0-only
"""Locates events in the ruleset of their time: rule number, hook, priority, generation.

nftables reports a rule by its handle.  A table never uses a handle twice, but a table
that is deleted and made again starts from the beginning: so each generation of the
ruleset has a snapshot of its own, and if an event could mean two rules, its rule stays
unknown.  Must not do I/O.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import TRACKING, ChainKey, ChainRegistry
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.netfilter import FAMILY_HOOKS, NAT_PRIORITIES, UNKNOWN_HOOK

# The kernel announces new rules at most this long after they took effect, ns.
ANNOUNCE_DELAY: Final = 10_000_000
_MOST_GENERATIONS: Final = 64
_MOST_CACHED: Final = 1 << 16
# What a location is found by: generation, the one that may follow (0: none), number of the
# chain, verdict (0 unless one may follow), handle of the rule, that of the table (0: unknown).
_KEY: Final = np.dtype(
    [
        *(("generation", "u4"), ("after", "u4"), ("chain", "u4"), ("verdict", "i4")),
        *(("handle", "u8"), ("table", "u8")),
    ]
)


class Location(NamedTuple):
    """The fields of an event that the ruleset determines; see EVENT for the unknown values.

    `priority`: of the chain, or of NAT at the hook for chains of type nat.
    """

    rulenum: int
    hook: int
    priority: int
    ruleset: int
    tracking: int = 0


_UNKNOWN: Final = Location(0, UNKNOWN_HOOK, 0, 0)


class Generations:
    """The snapshots of a namespace's nftables ruleset, by the kernel's generation number."""

    def __init__(self, first: Snapshot, number: int) -> None:
        """`number`: the stream's number of this generation."""
        self._order: list[int] = [first.genid]
        self._snapshots: dict[int, Snapshot] = {first.genid: first}
        self._numbers: dict[int, int] = {first.genid: number}
        self._announced: dict[int, int] = {}  # CLOCK_MONOTONIC, ns
        self._early = 0  # generation of a snapshot that is not announced yet
        self._rulenums: dict[tuple[int, ChainKey], dict[int, int]] = {}
        self._rewritten: dict[tuple[ChainKey, int], tuple[int, int, int]] = {}
        self._cache: dict[tuple[int, ...], Location] = {}

    @property
    def newest(self) -> Snapshot | None:
        """The snapshot of the newest generation, None if it is unknown."""
        return self._snapshots.get(self._order[-1])

    def change(self, genid: int, announced: int, number: int, snapshot: Snapshot | None) -> None:
        """Adds a generation, announced at `announced`, CLOCK_MONOTONIC ns.

        `snapshot`: the ruleset now, which may be of a later generation.
        """
        if genid not in self._numbers:
            self._order.append(genid)
            self._numbers[genid] = number
            self._announced[genid] = announced
        if snapshot is not None and snapshot.genid != self._early:
            if self._early not in self._numbers:
                self._snapshots.pop(self._early, None)
            self._snapshots[snapshot.genid] = snapshot
            self._early = snapshot.genid
        for old in self._order[:-_MOST_GENERATIONS]:
            self._numbers.pop(old, None)
            self._snapshots.pop(old, None)
            self._announced.pop(old, None)
        self._order = self._order[-_MOST_GENERATIONS:]
        self._rulenums.clear()
        self._cache.clear()
        self._rewritten.clear()

    @property
    def rewriting(self) -> bool:
        """Whether a rule, of now or of a generation that is remembered, may change packets."""
        return any(one.rewriting for one in self._snapshots.values())

    @property
    def translating(self) -> bool:
        """Whether there is a chain of type nat, likewise."""
        found = (chain.type for one in self._snapshots.values() for chain in one.chains.values())
        return "nat" in found

    def rewritten(self, events: Array, chains: ChainRegistry) -> Array:
        """The bytes of packets that rules may have changed, see Arrivals: uint64, shape (n, 3).

        Of each event its rule, rules of the table without a report, and all of the table.
        """
        keys = np.zeros(len(events), [("chain", "u8"), ("handle", "u8")])
        keys["chain"], keys["handle"] = events["chain"], events["handle"]
        unique, inverse = np.unique(keys, return_inverse=True)
        found = [self._rewrites(chains.chains[chain], handle) for chain, handle in unique.tolist()]
        changed: Array = np.array(found, np.uint64).reshape(-1, 3)[inverse]
        return changed

    def _rewrites(self, chain: ChainKey, handle: int) -> tuple[int, int, int]:
        key = (chain, handle)
        if key not in self._rewritten:
            if len(self._rewritten) > _MOST_CACHED:
                self._rewritten.clear()
            self._rewritten[key] = self._find_rewrites(chain, handle)
        return self._rewritten[key]

    def _find_rewrites(self, chain: ChainKey, handle: int) -> tuple[int, int, int]:
        hit = missed = total = 0
        name = snapshot_name(chain.chain)
        table = (chain.family, snapshot_name(chain.table))
        for snapshot in self._snapshots.values():
            for (place, number), one in snapshot.rewriting.get(table, {}).items():
                total |= one.hit
                missed |= one.missed
                if (place, number) == (name, handle):
                    hit |= one.hit
        if handle and total:
            infos = (one.chains.get((*table, name)) for one in self._snapshots.values())
            if not any(info is not None and handle in info.handles for info in infos):
                hit = total  # a rule that no listing had
        return hit, missed, total

    def locate(
        self,
        events: Array,
        chains: ChainRegistry,
        after: Array | None = None,
        tables: Array | None = None,
    ) -> None:
        """Fills in the fields of Location of events, EVENT, shape (n,).

        `after`: of each event the last generation that it may be of, 0: only its own, uint32,
        shape (n,); by default what its time allows.  `tables`: the handles of their tables,
        0: unknown, uint64, shape (n,).
        """
        if not len(events):
            return
        if after is None:
            after = self._after(events)
        keys = np.zeros(len(events), _KEY)
        keys["generation"], keys["after"] = events["generation"], after
        keys["chain"], keys["handle"] = events["chain"], events["handle"]
        keys["verdict"] = np.where(after > 0, events["verdict"], 0)
        if tables is not None:
            keys["table"] = tables
        words = keys.view(np.uint64).reshape(len(events), 4)
        with np.errstate(over="ignore"):
            hashed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]
            for at in (2, 3):
                hashed = hashed * np.uint64(0xC2B2AE3D27D4EB4F) ^ words[:, at]
            hashed *= np.uint64(0x9E3779B97F4A7C15)
        _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
        found = np.array(
            [self._location(key, chains) for key in keys[first].tolist()], np.int64
        ).reshape(-1, len(Location._fields))[inverse]
        for column, name in enumerate(Location._fields):
            events[name] = found[:, column]

    def _after(self, events: Array) -> Array:
        """The generation that may have been in effect already, though not announced; 0: none."""
        after = np.zeros(len(events), np.uint32)
        for old, new in zip(self._order, self._order[1:], strict=False):
            late = events["time"] + ANNOUNCE_DELAY >= self._announced[new]
            after[(events["generation"] == old) & late] = new
        return after

    def _location(self, key: tuple[int, ...], chains: ChainRegistry) -> Location:
        """`key`: as _KEY."""
        generation, after, number, verdict, handle, table = key
        location = self._cache.get(key)
        if location is None:
            if len(self._cache) > _MOST_CACHED:
                self._cache.clear()
            chain = chains.chains[number]
            location = self._search(generation, after, chain, handle, verdict, table)
            if chain.family in TRACKING:
                location = location._replace(tracking=self._tracking(generation, after))
            self._cache[key] = location
        return location

    def _tracking(self, generation: int, after: int) -> int:
        """The IP versions that conntrack has seen by the rules of then: see TRACKING.

        Also by those before, under which the packet may have passed conntrack's hook.
        """
        at = self._order.index(generation) if generation in self._order else -1
        if at < 0:
            return 0
        found = 3
        for one in {generation, after or generation, self._order[max(at - 1, 0)]}:
            snapshot = self._snapshots.get(one)
            families = () if snapshot is None else snapshot.tracking
            found &= functools.reduce(int.__or__, (TRACKING.get(each, 0) for each in families), 0)
        return found

    def _search(
        self,
        generation: int,
        after: int,
        chain: ChainKey,
        handle: int,
        verdict: int = 0,
        table: int = 0,
    ) -> Location:
        here = self._in(generation, chain, handle, table)
        known = generation in self._snapshots
        if known and after in self._snapshots:
            there = self._in(after, chain, handle, table)
            if after - generation > 1 and not self._same_throughout(
                generation, after, chain, handle
            ):
                # It may be of one in between.
                return (here or there or _UNKNOWN)._replace(rulenum=0, ruleset=0)
            if here is None or not here.rulenum:
                return there or here or _UNKNOWN
            if there is None or not there.rulenum:
                return here
            if self._same_table(generation, after, chain):
                if self._same_rule(generation, after, chain, handle):
                    return here
                # A rule was replaced under its handle: its verdict may tell which one it was.
                ways = [self._may_give(one, chain, handle, verdict) for one in (generation, after)]
                if ways[0] != ways[1]:
                    return here if ways[0] else there
                return here._replace(ruleset=0)
            # The table was made again: its handle means one rule or the other.
            rulenum = here.rulenum if here.rulenum == there.rulenum else 0
            return here._replace(rulenum=rulenum, ruleset=0)
        if not after and here is not None and here.rulenum:
            return here
        at = self._order.index(generation) if generation in self._order else len(self._order)
        before = [one for one in reversed(self._order[:at]) if one in self._snapshots][:1]
        later = [one for one in self._order[at + 1 :] if one in self._snapshots][:1]
        if not later and self._early in self._snapshots and self._early not in self._numbers:
            later = [self._early]
        if known and not after:
            # The call began under earlier rules, or the new ones were announced late; or the
            # chain is of a table that is gone, which packets meet a little longer.
            for one in before + later:
                there = self._in(one, chain, handle, table)
                if there is not None and there.rulenum:
                    return there._replace(ruleset=0)
            return here or _UNKNOWN
        # The generation was replaced before it could be read: what the generations before
        # and after it agree on holds, the rest is unknown.
        sides = ([generation] if known else before) + later
        near = [self._in(one, chain, handle, table) for one in sides]
        found = [one for one in near if one is not None]
        numbers = {0 if one is None else one.rulenum for one in near}
        if not found:
            return _UNKNOWN
        if len(sides) == 2 and self._same_throughout(sides[0], sides[1], chain, handle):
            return found[0]
        # A table that is made again uses its handles again.
        sure = len(sides) == 2 and self._same_table(sides[0], sides[1], chain)
        if len(numbers) > 1 or not (sure or not generation):
            numbers = {0}
        return found[0]._replace(ruleset=0, rulenum=numbers.pop())

    def _same_throughout(self, one: int, other: int, chain: ChainKey, handle: int) -> bool:
        """Whether it was the same rule with the same number from `one` to `other`."""
        here, there = self._in(one, chain, handle), self._in(other, chain, handle)
        return (
            here is not None
            and there is not None
            and 0 < here.rulenum == there.rulenum
            and self._same_table(one, other, chain)
            and self._same_rule(one, other, chain, handle)
        )

    def _same_table(self, one: int, other: int, chain: ChainKey) -> bool:
        """Whether the chain's table existed without interruption from `one` to `other`."""
        handles = [self._table_handle(each, chain) for each in (one, other)]
        return handles[0] is not None and handles[0] == handles[1]

    def _table_handle(self, generation: int, chain: ChainKey) -> int | None:
        """The handle of the chain's table then; None if there is none."""
        snapshot = self._snapshots.get(generation)
        if snapshot is None:
            return None
        found = snapshot.tables.get((chain.family, snapshot_name(chain.table)))
        return None if found is None else found.handle

    def _same_rule(self, one: int, other: int, chain: ChainKey, handle: int) -> bool:
        """Whether a handle means the same rule in both; 0 is the chain's end."""
        contents = [
            None
            if (info := self._info(each, chain)) is None
            else dict(zip(info.handles, info.contents, strict=False)).get(handle)
            for each in (one, other)
        ]
        return not handle or contents[0] == contents[1]

    def _may_give(self, generation: int, chain: ChainKey, handle: int, verdict: int) -> bool:
        """Whether the rule that the handle means in that generation may give the verdict."""
        info = self._info(generation, chain)
        verdicts = () if info is None else zip(info.handles, info.verdicts, strict=False)
        return dict(verdicts).get(handle) in (None, verdict)

    def _info(self, generation: int, chain: ChainKey) -> ChainInfo | None:
        """The chain in that generation's snapshot; None if there is none."""
        snapshot = self._snapshots.get(generation)
        if snapshot is None:
            return None
        return snapshot.chains.get(
            (chain.family, snapshot_name(chain.table), snapshot_name(chain.chain))
        )

    def _in(self, generation: int, chain: ChainKey, handle: int, table: int = 0) -> Location | None:
        """The location by that generation's snapshot; None if it has no such chain.

        `table`: the table's handle, 0: any.
        """
        info = self._info(generation, chain)
        if info is None or (table and table != self._table_handle(generation, chain)):
            return None
        rulenum = len(info.handles) + 1
        if handle:
            rulenum = self._rulenums_of(generation, chain, info).get(handle, 0)
        hook = UNKNOWN_HOOK if info.hook is None else info.hook
        if chain.family in FAMILY_HOOKS:
            hook = FAMILY_HOOKS[chain.family].get(hook, UNKNOWN_HOOK)
        priority = info.priority or 0
        if info.type == "nat":
            priority = NAT_PRIORITIES.get(hook, priority)
        return Location(rulenum, hook, priority, self._numbers.get(generation, 0))

    def _rulenums_of(self, generation: int, chain: ChainKey, info: ChainInfo) -> dict[int, int]:
        """Rule number by handle."""
        key = (generation, chain)
        if key not in self._rulenums:
            self._rulenums[key] = {one: at for at, one in enumerate(info.handles, 1)}
        return self._rulenums[key]


def snapshot_name(name: bytes) -> str:
    """A name as snapshots have it: bytes that are not UTF-8 become surrogates."""
    return name.decode("utf-8", "surrogateescape")
