# SPDX-License-Identifier: GPL-2.0-only
"""Locates events in the ruleset of their time: rule number, hook, priority, generation.

nftables reports a rule by its handle.  A table never uses a handle twice, but a table
that is deleted and made again starts from the beginning: so each generation of the
ruleset has a snapshot of its own, and if an event could mean two rules, its rule stays
unknown.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import ChainKey, ChainRegistry
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.netfilter import ARP_HOOKS, NFPROTO_ARP, UNKNOWN_HOOK

# The kernel announces new rules at most this long after they took effect, ns.
ANNOUNCE_DELAY: Final = 10_000_000
_MOST_GENERATIONS: Final = 64
_MOST_CACHED: Final = 1 << 16


class Location(NamedTuple):
    """The fields of an event that the ruleset determines; see EVENT for the unknown values."""

    rulenum: int
    hook: int
    priority: int
    ruleset: int


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
        self._cache: dict[tuple[int, int, int, int], Location] = {}

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

    def locate(self, events: Array, chains: ChainRegistry) -> None:
        """Fills in `rulenum`, `hook`, `priority` and `ruleset` of events, EVENT, shape (n,)."""
        if not len(events):
            return
        # The generation that may have been in effect already, though not announced.
        after = np.zeros(len(events), np.uint32)
        for old, new in zip(self._order, self._order[1:], strict=False):
            late = events["time"] + ANNOUNCE_DELAY >= self._announced[new]
            after[(events["generation"] == old) & late] = new
        keys = np.zeros(
            len(events), [("generation", "u4"), ("after", "u4"), ("chain", "u8"), ("handle", "u8")]
        )
        keys["generation"], keys["after"] = events["generation"], after
        keys["chain"], keys["handle"] = events["chain"], events["handle"]
        words = keys.view(np.uint64).reshape(len(events), 3)
        with np.errstate(over="ignore"):
            hashed = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]
            hashed = hashed * np.uint64(0xC2B2AE3D27D4EB4F) ^ words[:, 2]
            hashed *= np.uint64(0x9E3779B97F4A7C15)
        _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
        found = np.array(
            [self._location(key, chains) for key in keys[first].tolist()], np.int64
        ).reshape(-1, 4)[inverse]
        for column, name in enumerate(Location._fields):
            events[name] = found[:, column]

    def _location(self, key: tuple[int, int, int, int], chains: ChainRegistry) -> Location:
        """`key`: generation, the one that may follow (0: none), chain number, handle."""
        generation, after, number, handle = key
        location = self._cache.get(key)
        if location is None:
            if len(self._cache) > _MOST_CACHED:
                self._cache.clear()
            chain = chains.chains[number]
            location = self._cache[key] = self._search(generation, after, chain, handle)
        return location

    def _search(self, generation: int, after: int, chain: ChainKey, handle: int) -> Location:
        here = self._in(generation, chain, handle)
        known = generation in self._snapshots
        if known and after in self._snapshots:
            there = self._in(after, chain, handle)
            if here is None or not here.rulenum:
                return there or here or _UNKNOWN
            if there is None or not there.rulenum:
                return here
            if self._same_table(generation, after, chain):
                same = self._same_rule(generation, after, chain, handle)
                return here if same else here._replace(ruleset=0)
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
            # The call began under earlier rules, or the new ones were announced late.
            for one in before + later:
                there = self._in(one, chain, handle)
                if there is not None and there.rulenum:
                    return there._replace(ruleset=0)
            return here or _UNKNOWN
        # The generation was replaced before it could be read: what the generations before
        # and after it agree on holds, the rest is unknown.
        sides = ([generation] if known else before) + later
        near = [self._in(one, chain, handle) for one in sides]
        found = [one for one in near if one is not None]
        numbers = {0 if one is None else one.rulenum for one in near}
        if not found:
            return _UNKNOWN
        if (
            len(found) == 2
            and len(numbers) == 1
            and found[0].rulenum
            and self._same_table(sides[0], sides[1], chain)
            and self._same_rule(sides[0], sides[1], chain, handle)
        ):
            return found[0]  # handles are unique: the rule existed all the time
        return found[0]._replace(ruleset=0, rulenum=numbers.pop() if len(numbers) == 1 else 0)

    def _same_table(self, one: int, other: int, chain: ChainKey) -> bool:
        """Whether the chain's table existed without interruption from `one` to `other`."""
        key = (chain.family, snapshot_name(chain.table))
        tables = [self._snapshots[each].tables.get(key) for each in (one, other)]
        return (
            tables[0] is not None
            and tables[1] is not None
            and (tables[0].handle == tables[1].handle)
        )

    def _same_rule(self, one: int, other: int, chain: ChainKey, handle: int) -> bool:
        """Whether a handle means the same rule in both; 0 is the chain's end."""
        key = (chain.family, snapshot_name(chain.table), snapshot_name(chain.chain))
        infos = [self._snapshots[each].chains.get(key) for each in (one, other)]
        contents = [
            None
            if info is None
            else dict(zip(info.handles, info.contents, strict=False)).get(handle)
            for info in infos
        ]
        return not handle or contents[0] == contents[1]

    def _in(self, generation: int, chain: ChainKey, handle: int) -> Location | None:
        """The location by that generation's snapshot; None if it has no such chain."""
        snapshot = self._snapshots.get(generation)
        if snapshot is None:
            return None
        info = snapshot.chains.get(
            (chain.family, snapshot_name(chain.table), snapshot_name(chain.chain))
        )
        if info is None:
            return None
        rulenum = len(info.handles) + 1
        if handle:
            rulenum = self._rulenums_of(generation, chain, info).get(handle, 0)
        hook = UNKNOWN_HOOK if info.hook is None else info.hook
        if chain.family == NFPROTO_ARP:
            hook = ARP_HOOKS.get(hook, UNKNOWN_HOOK)
        return Location(rulenum, hook, info.priority or 0, self._numbers.get(generation, 0))

    def _rulenums_of(self, generation: int, chain: ChainKey, info: ChainInfo) -> dict[int, int]:
        """Rule number by handle."""
        key = (generation, chain)
        if key not in self._rulenums:
            self._rulenums[key] = {one: at for at, one in enumerate(info.handles, 1)}
        return self._rulenums[key]


def snapshot_name(name: bytes) -> str:
    """A name as snapshots have it: bytes that are not UTF-8 become surrogates."""
    return name.decode("utf-8", "surrogateescape")
