# SPDX-License-Identifier: GPL-2.0-only
"""The rules of a namespace's legacy tables by time, and what events meant at theirs.

Must not read messages, and must not know which engine saw the events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.changes import LegacyChange
from ipttrace.capture.netlink.context import RunContext
from ipttrace.capture.netlink.events import POLICY, UNKNOWN_VERDICT, ChainKey, ChainRegistry
from ipttrace.capture.netlink.legacy.rules import LegacyRules, Stretch
from ipttrace.capture.netlink.legacy.tables import (
    Outcome,
    Tables,
    may_drop_last,
    may_set_marks,
    outcome,
    priorities,
    rewrites,
)
from ipttrace.capture.netlink.nft.rewrites import ALL

LOCATED: Final = np.dtype(
    [
        ("time", "u8"),
        ("chain", "u4"),
        ("rulenum", "u4"),
        ("ruleset", "u4"),
        ("verdict", "i4"),
        ("priority", "i4"),
        ("kind", "u1"),
        ("hook", "u1"),
        ("family", "u1"),
        ("last", "?"),
    ]
)
"""The fields of an event that `locate` reads and fills in."""

_MOST_CACHED: Final = 1 << 14
_MOST_STRETCHES: Final = 256
_UNKNOWN: Final = Stretch(0, (), {}, {})


class LegacyTimeline:
    """The rules of one namespace's legacy tables.

    `close` and `update_rules` are for the thread inside the namespace, the rest is for the
    engine's.
    """

    def __init__(
        self, path: str, inode: int, context: RunContext, waiting: Callable[[], bool]
    ) -> None:
        """Of the calling thread's namespace, `inode`, to which `path` leads.

        `waiting`: are there events that are not yet located?  Raises OSError.
        """
        self.path = path  # leads to the namespace
        self._inode = inode
        self._context = context
        self._waiting = waiting
        self.chains = ChainRegistry()
        self._outcomes: dict[tuple[ChainKey, int, int, int, int], Outcome] = {}
        # Times with the rules of each, in order, and their generations, 0 if unknown.
        self._stretches: list[Stretch] = [_UNKNOWN]
        self._generations = [0]
        with contextlib.ExitStack() as stack:
            self.rules = stack.enter_context(contextlib.closing(LegacyRules()))
            if (fd := self.rules.fileno()) >= 0:
                context.watch(fd)
                stack.callback(context.unwatch, fd)
            self.sets_marks = False  # may a rule, now or earlier?
            # Does a rule, now or earlier, end the last chain that packets meet with a drop?
            self.may_drop_last = False
            self.rewrites = 0  # what rules, now or earlier, may change of packets
            self.update_rules(force=True)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes the sockets of `rules`, which hold the namespace."""
        self._stack.close()

    def update_rules(self, *, force: bool = False) -> bool:
        """Looks for changes of the rules, and for their texts, if it is due or `force`.

        Reports both.  Returns whether the rules changed.
        """
        stretches = self.rules.check(self._context.flush, force=force)
        if stretches is None:
            return False
        for number, stretch in enumerate(stretches, 1):
            self._add(stretch, newest=number == len(stretches))
        if self.rules.learned and not stretches:
            self._report(self._generations[-1], self.rules.tables, self.rules.epochs)
        return bool(stretches)

    def _add(self, stretch: Stretch, *, newest: bool) -> None:
        generation = 0
        # Without an event of that time, nobody asks for its rules.
        if newest or (stretch.known and self._waiting()):
            generation = self._context.next_generation()
            self._report(generation, stretch.known, stretch.epochs)
        while self._stretches and stretch.start <= self._stretches[-1].start:
            del self._stretches[-1], self._generations[-1]
        self._stretches.append(stretch)
        self._generations.append(generation)
        if len(self._stretches) > _MOST_STRETCHES:
            self._stretches = [_UNKNOWN, *self._stretches[-_MOST_STRETCHES // 2 :]]
            self._generations = [0, *self._generations[-_MOST_STRETCHES // 2 :]]
        self._outcomes.clear()
        unparsed = self.rules.unparsed
        self.sets_marks |= unparsed or may_set_marks(self.rules.tables)
        self.may_drop_last |= may_drop_last(self.rules.tables)
        self.rewrites |= ALL if unparsed else rewrites(self.rules.tables)

    def _report(self, generation: int, tables: Tables, epochs: dict[int, int]) -> None:
        texts = self.rules.texts(tables, epochs)
        self._context.changes.put(LegacyChange(self.path, self._inode, texts, generation))

    def stretch(self, times: Array) -> Array:
        """A number for the rules of each time, CLOCK_MONOTONIC ns: int64, shape (n,)."""
        # A change is seen some time after it took effect: until then, the event may be of
        # the rules before or after it.
        starts = np.array([one.start for one in self._stretches], np.uint64)
        found: Array = np.maximum(np.searchsorted(starts, times, side="left") - 1, 0)
        return found

    def locate(self, events: Array) -> tuple[Array, Array]:
        """Fills in `kind`, `verdict`, `last`, `ruleset` and `priority`.

        `events`: with the fields of LOCATED, in which `kind` is as logged, shape (n,).
        Returns Outcome's moves and copies of each event, bool, shape (n,).
        """
        if not len(events):
            return np.zeros(0, bool), np.zeros(0, bool)
        stretch = self.stretch(events["time"])
        key = np.zeros(len(events), [("chain", "u4"), ("rulenum", "u4"), ("more", "u8")])
        key["chain"], key["rulenum"] = events["chain"], events["rulenum"]
        key["more"] = (
            events["kind"].astype(np.uint64)
            | events["family"].astype(np.uint64) << np.uint64(8)
            | stretch.astype(np.uint64) << np.uint64(16)
        )
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        if len(self._outcomes) > _MOST_CACHED:
            self._outcomes.clear()
        found = np.array(
            [
                self._outcome(
                    self.chains.chains[int(event["chain"])],
                    int(event["kind"]),
                    int(event["rulenum"]),
                    int(event["family"]),
                    int(stretch[at]),
                )
                for at, event in zip(first.tolist(), events[first], strict=True)
            ],
            np.int64,
        ).reshape(-1, len(Outcome._fields))[inverse]
        events["kind"], events["verdict"] = found[:, 0], found[:, 1]
        events["last"] = (found[:, 1] >= 0) & (found[:, 1] != UNKNOWN_VERDICT)
        events["last"] |= events["kind"] == POLICY
        events["ruleset"] = np.array(self._generations, np.uint32)[stretch]
        events["ruleset"][found[:, 4] == 0] = 0
        tables = [chain.table for chain in self.chains.chains]
        events["priority"] = priorities(tables, events["chain"], events["hook"])
        return found[:, 2] != 0, found[:, 3] != 0

    def _outcome(
        self, chain: ChainKey, match: int, number: int, family: int, stretch: int
    ) -> Outcome:
        key = (chain, match, number, family, stretch)
        if key not in self._outcomes:
            table, name = (
                part.decode("utf-8", "backslashreplace") for part in (chain.table, chain.chain)
            )
            found = {
                outcome(tables, family, table, name, match, number)
                for tables in self._stretches[stretch].seen
            }
            if len(found) == 1:
                (self._outcomes[key],) = found
            else:
                matches = {one.match for one in found}
                known = matches.pop() if len(matches) == 1 else match
                self._outcomes[key] = Outcome(known, UNKNOWN_VERDICT)
        return self._outcomes[key]
