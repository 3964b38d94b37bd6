# SPDX-License-Identifier: GPL-2.0-only
"""Assigns events of legacy tables to journeys, which begin at an event of the flip table.

A packet is recognised by the fields that NAT leaves alone, or by its conntrack tuple.  Must
not do I/O, and must not loop over events in Python.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.copies import Copies
from ipttrace.capture.netlink.events import UniqueNumbers
from ipttrace.capture.netlink.fading import FadingMap
from ipttrace.capture.netlink.journeys import PacketFilter
from ipttrace.capture.netlink.keys import Keys
from ipttrace.netfilter import HOOKS

# Packets with other addresses than before, which SNPT and DNPT gave them.
_MOST_MOVED: Final = 1 << 12
# How long a flip waits for a legacy event of its packet, ns.
_FLIP_EXPIRES: Final = 1_000_000_000
_INPUT: Final = HOOKS.index("INPUT")
_OUTPUT: Final = HOOKS.index("OUTPUT")
_POSTROUTING: Final = HOOKS.index("POSTROUTING")


class LegacyJourneys:
    """Journeys of legacy tables' events: found by the packet itself, see packet_keys."""

    def __init__(
        self, numbers: UniqueNumbers, matches: PacketFilter, *, flips: bool = True
    ) -> None:
        """`matches`: for packets whose flip is not known; `flips`: else none has one."""
        self._flips = flips
        self.refused = 0  # calls of packets without a flip that EXPR does not match
        self._numbers = numbers
        self._matches = matches
        self._newest: FadingMap[int] = FadingMap()  # Keys.full → the packet's newest journey
        self._newest_by_nat: FadingMap[int] = FadingMap()  # Keys.invariant → the same
        self._begun: FadingMap[int] = FadingMap()  # journey → time of its flip, ns
        self._current: FadingMap[int] = FadingMap()  # Keys.full → the journey that the packet is on
        self._waiting: FadingMap[deque[tuple[int, int, bool]]] = FadingMap()  # see _wait
        # Keys.full → chain_order of the last event, and did that event end its call?
        self._last_chain: FadingMap[tuple[int, bool]] = FadingMap()
        # Keys.invariant → time of the newest flip; and of the newest that has others' invariant
        self._flip_time: FadingMap[int] = FadingMap()
        self._alike: FadingMap[int] = FadingMap()
        self._doubtful: FadingMap[bool] = FadingMap()  # journeys with events that may be others'
        # Keys.full after a move → that before it
        self._moved: FadingMap[int] = FadingMap(_MOST_MOVED)
        # Keys.invariant → Keys.full and chain_order of an event that moves, if it was the last
        self._moving: FadingMap[tuple[int, int]] = FadingMap()
        self._copies = Copies()
        self._all = [one for one in vars(self).values() if isinstance(one, FadingMap)]

    def assign(
        self,
        events: Array,
        keys: Keys,
        flips: Array,
        flip_keys: Keys,
        moves: Array | None = None,
        copied: Array | None = None,
        skbs: Array | None = None,
    ) -> Array:
        """The events of packets that EXPR matches, with `journey`, packet by packet.

        `events`: shape (n,), in order, with time, journey, hook, priority, last, packet
        and caplen; `keys`: of the events; `flips`: NftJourneys.flips since the last call;
        `flip_keys`: of the flips; `moves`: bool, shape (n,), events of rules that give the
        packet other addresses and continue.  Packets that look the same are separated by the order
        in which a packet meets chains: an earlier chain begins another journey; and copies from
        their originals by `copied`, bool, shape (n,), events of rules with TEE, or by `skbs`,
        uint64, shape (n,), their addresses: those of packets on their way differ.
        """
        self._fade(flips, events)
        self._remember(self._newest, flip_keys.full, flips["journey"])
        self._note_alike(flip_keys.invariant, flips["time"])
        self._remember(self._newest_by_nat, flip_keys.invariant, flips["journey"])
        self._remember(self._begun, flips["journey"], flips["time"])
        self._wait(flip_keys.full, flips)
        if not len(events):
            return events
        chain = chain_order(events["hook"], events["priority"])
        looks = keys.full if moves is None else self._before_moves(keys, chain, moves)
        copies = skbs
        if copied is not None:
            copies = self._copies.numbers(events, looks, chain, copied, self._was_sent)
        full = looks if copies is None else _apart(looks, copies)
        order = np.argsort(full, kind="stable")
        events, full, chain, looks = events[order], full[order], chain[order], looks[order]
        invariant, coarse = keys.invariant[order], keys.coarse[order]
        count = len(events)
        first = np.append(True, full[1:] != full[:-1])
        ended = (chain[1:] == chain[:-1]) & events["last"][:-1]
        begins = np.append(True, ended | ~can_follow(chain[:-1], chain[1:]))
        heads = np.flatnonzero(first)
        goes_on = np.zeros(len(heads), bool)
        for i, (key, now) in enumerate(
            zip(full[heads].tolist(), chain[heads].tolist(), strict=True)
        ):
            before = self._last_chain.get(key)
            goes_on[i] = before is not None and (
                can_follow(before[0], now) and not (now == before[0] and before[1])
            )
        begins[heads] = ~goes_on
        tails = np.append(heads[1:], count) - 1
        self._remember(
            self._last_chain,
            full[tails],
            zip(chain[tails].tolist(), events["last"][tails].tolist(), strict=True),
        )
        found = np.zeros(count, np.uint64)
        finds = np.flatnonzero(first | begins)
        finds = finds[np.argsort(order[finds])]  # packets that look the same take flips in turn
        for at in finds.tolist():
            of = (int(full[at]), int(looks[at]), int(invariant[at]), int(coarse[at]))
            found[at] = self._find(events, at, *of, begins=bool(begins[at]))
        starts = np.maximum.accumulate(np.where(first | begins, np.arange(count), 0))
        events["journey"] = found[starts]
        matching: Array = events[events["journey"] != 0]
        return matching

    def _fade(self, *some: Array) -> None:
        """Forgets packets that have not been seen for long, as of the newest of the events."""
        if times := [int(one["time"].max()) for one in some if len(one)]:
            for held in self._all:
                held.fade(max(times))

    def _before_moves(self, keys: Keys, chain: Array, moves: Array) -> Array:
        """Keys.full of the events, of moved packets that before the move: uint64, shape (n,)."""
        full = keys.full.copy()
        if self._moved:
            after = np.sort(np.fromiter(self._moved, np.uint64, len(self._moved)))
            at = np.minimum(np.searchsorted(after, full), len(after) - 1)
            for one in np.flatnonzero(after[at] == full).tolist():
                full[one] = self._moved[int(full[one])]
        if not moves.any() and not self._moving:
            return full
        # The next event of the run has the same invariant fields.
        order = np.argsort(keys.invariant, kind="stable")
        invariant = keys.invariant[order]
        first = np.append(True, invariant[1:] != invariant[:-1])
        begins = order[first].tolist()
        of = [self._moving.pop(one) for one in invariant[first].tolist()]
        steps = [(at, *one) for at, one in zip(begins, of, strict=True) if one is not None]
        behind = np.flatnonzero(~first & np.append(False, moves[order[:-1]]))
        steps += [(int(order[at]), -1, int(order[at - 1])) for at in behind.tolist()]
        for at, known, other in steps:
            before, its_chain = (known, other) if known >= 0 else (int(full[other]), chain[other])
            if chain[at] == its_chain and int(full[at]) != before:
                raw = full[at]
                self._remember(self._moved, keys.full[at : at + 1], [before])
                full[full == raw] = before
        tails = order[np.append(first[1:], True)]
        tails = tails[moves[tails]]
        ends = zip(full[tails].tolist(), chain[tails].tolist(), strict=True)
        self._remember(self._moving, keys.invariant[tails], ends)
        return full

    def _note_alike(self, invariants: Array, times: Array) -> None:
        for key, time in zip(invariants.tolist(), times.tolist(), strict=True):
            before = self._flip_time.get(key)
            if before is not None and time - before <= _FLIP_EXPIRES:
                self._remember(self._alike, np.array([key], np.uint64), [time])
        self._remember(self._flip_time, invariants, times)

    def doubtful(self, journeys: Array) -> Array:
        """Whether some of their events may be of other packets: bool, shape (n,).

        After NAT, and without conntrack's tuple, packets that differ only in what NAT
        changes cannot be distinguished.
        """
        return np.array([one in self._doubtful for one in journeys.tolist()], bool)

    def flipped(self, journeys: Array) -> Array:
        """Whether they began with a flip: bool, shape (n,)."""
        return np.array([one in self._begun for one in journeys.tolist()], bool)

    def _find(
        self,
        events: Array,
        at: int,
        key: int,
        looks: int,
        invariant: int,
        coarse: int,
        *,
        begins: bool,
    ) -> int:
        """The journey that begins or continues with event `at`, 0 if EXPR does not match.

        `looks`: Keys.full; `key`: the same, of copies another.
        """
        journey = 0 if begins else self._current.get(key, 0)
        for one in dict.fromkeys((looks, coarse)):
            journey = journey or self._next_flip(
                one, int(events["hook"][at]), int(events["time"][at])
            )
        known = self._newest.get(looks) or 0
        again = begins and known > 0 and not self._flips
        journey = journey or (0 if again else known)
        if not journey and not again and (journey := self._newest_by_nat.get(invariant, 0)):
            alike = self._alike.get(invariant)
            if alike is not None and int(events["time"][at]) - alike <= _FLIP_EXPIRES:
                self._remember(self._doubtful, np.array([journey]), [True])
        part = slice(at, at + 1)
        if not journey and self._matches(events["packet"][part], events["caplen"][part])[0]:
            journey = int(self._numbers.take(1)[0])
            self._newest[looks] = self._newest_by_nat[invariant] = journey
        self.refused += not journey
        self._remember(self._current, np.array([key], np.uint64), [journey])
        return journey

    def _wait(self, keys: Array, flips: Array) -> None:
        """Makes each flip wait for events of its packet; flips that look the same keep their order.

        A waiting flip: its journey, its time, and whether the packet was received.
        """
        received = (flips["iif"] != 0).tolist()
        rows = zip(flips["journey"].tolist(), flips["time"].tolist(), received, strict=True)
        for key, flip in zip(keys.tolist(), rows, strict=True):
            waiting = self._waiting.get(key, deque())
            while waiting and flip[1] - waiting[0][1] > _FLIP_EXPIRES:
                waiting.popleft()
            waiting.append(flip)
            self._waiting[key] = waiting

    def _was_sent(self, key: int, since: int, until: int) -> bool:
        """Whether a flip of a packet that was not received waits, of between these times."""
        return any(
            since < begun <= until and not received
            for _, begun, received in self._waiting.get(key, ())
        )

    def _next_flip(self, key: int, hook: int, time: int) -> int:
        """Removes the first waiting flip that an event at `hook` can follow: its journey, or 0."""
        waiting = self._waiting.get(key, ())
        for at, (journey, begun, received) in enumerate(waiting):
            fits = hook == _POSTROUTING or received == (hook < _OUTPUT)
            if fits and time - begun <= _FLIP_EXPIRES:
                for _ in range(at + 1):
                    self._waiting[key].popleft()
                if not self._waiting[key]:
                    self._waiting.pop(key)
                return journey
        return 0

    def _remember(self, held: FadingMap[Any], keys: Array, values: Any) -> None:
        """Sets held[key] = value."""
        values = values.tolist() if isinstance(values, np.ndarray) else values
        for key, value in zip(keys.tolist(), values, strict=True):
            held[key] = value


def _apart(keys: Array, copies: Array) -> Array:
    """Other keys for events of copies, of each copy one: uint64, shape (n,)."""
    with np.errstate(over="ignore"):
        found: Array = keys ^ copies * np.uint64(0x9E3779B97F4A7C15)
    return found


def can_follow(before: Any, now: Any) -> Any:
    """Whether a packet on one way can meet the chain `now` after `before`: bool, as chain_order.

    What was delivered is not forwarded, and what is sent begins at OUTPUT, even if its skb is
    at the address of one that was received before and looked the same.
    """
    was, hook = before >> 32, now >> 32
    return (now >= before) & ((was == hook) | ((was != _INPUT) & (hook != _OUTPUT)))


def chain_order(hooks: Array, priorities: Array) -> Array:
    """Sorting keys, int64 below 2**40, shape (n,): in the order in which a packet meets chains."""
    order: Array = hooks.astype(np.int64) << 32 | (priorities.astype(np.int64) + 2**31)
    return order
