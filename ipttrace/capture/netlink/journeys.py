# SPDX-License-Identifier: GPL-2.0-only
"""Which packet each event is of: a journey for every packet that was flipped.

nftables gives packets ids, which are used again; legacy tables log the packet
alone, so that it is known by what NAT does not change of it.  Both begin with
the table of ours that flips.  Must not do I/O, and must not loop over events in
Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import Numbers
from ipttrace.capture.netlink.nft import decode as nft_trace
from ipttrace.capture.netlink.nft.decode import EVENT, Places

# Packets whose journey is remembered.
_MOST_IDS: Final = 1 << 17
# How long a packet may take from its flip to a line of it, ns; it may wait in a queue.
_NEAR: Final = 50_000_000
# How long a flip waits for a line of its packet, ns.
_FRESH: Final = 1_000_000_000
_OUTPUT: Final = 3  # NF_INET_*
_POSTROUTING: Final = 4

OWN: Final = b"ipttrace-"  # tables that flip, of whatever process

Accept = Callable[[Array, Array], Array]
"""Packets (n, k) and their captured lengths to bool (n,): is it one that was asked for?"""


class NftJourneys:
    """Of nftables' own ids: an id and the table that began it make a journey."""

    def __init__(self, places: Places, own: bytes, numbers: Numbers, accept: Accept) -> None:
        """`own`: the name of our table; `accept`: of packets that we did not begin to trace."""
        self.flips = np.zeros(0, EVENT)  # of the last `assign`: where journeys began
        self.begun = 0  # packets that our table has told of
        self.refused = 0  # runs of packets that others trace and nobody asked for
        self._places = places
        self._own = own
        self._numbers = numbers
        self.accept = accept
        self.exact = True  # our table takes what was asked for, and nothing else
        self._open: dict[int, int] = {}  # packet's id → journey, 0: nobody asked for it
        self._is_mine = self._is_tool = np.zeros(0, bool)  # of each place

    def _look_at_places(self) -> None:
        new = self._places.all[len(self._is_mine) :]
        if new:
            mine = [place.table == self._own for place in new]
            tools = [place.table.startswith(OWN) for place in new]
            self._is_mine = np.append(self._is_mine, np.array(mine))
            self._is_tool = np.append(self._is_tool, np.array(tools))

    def assign(self, events: Array) -> Array:
        """The events that were asked for, journey by journey, without those of our own table."""
        order = np.argsort(events["id"], kind="stable")
        events = events[order]
        ids = events["id"]
        count = len(ids)
        if not count:
            self.flips = events
            return events
        first = np.append(True, ids[1:] != ids[:-1])
        self._look_at_places()
        mine = self._is_mine[events["place"]]
        # What others trace passes our chains too, and is told of there where no rule takes it.
        passed = mine & (events["kind"] != nft_trace.RULE)
        tools = self._is_tool[events["place"]]
        begins = mine & ~passed
        if not self.exact:
            flips = np.flatnonzero(begins)
            begins[flips] = self.accept(events["packet"][flips], events["caplen"][flips])
        carried = np.zeros(count, np.uint64)
        unknown = np.flatnonzero(first & ~mine)
        if len(unknown):
            held = [self._open.get(one, -1) for one in ids[unknown].tolist()]
            known = np.array(held, np.int64)
            new = known < 0
            if new.any():
                strangers = unknown[new]
                taken = self.accept(events["packet"][strangers], events["caplen"][strangers]) & (
                    events["caplen"][strangers] > 0
                )
                self.refused += int((~taken).sum())
                known[new] = 0
                begins[strangers[taken]] = True
            carried[unknown] = known.astype(np.uint64)
        starts = first | mine | begins
        carried[begins] = self._numbers.take(int(begins.sum()))
        at = np.maximum.accumulate(np.where(starts, np.arange(count), 0))
        events["journey"] = carried[at]
        last = np.append(first[1:], True)
        self._open.update(zip(ids[last].tolist(), events["journey"][last].tolist(), strict=True))
        if len(self._open) > _MOST_IDS:
            self._open = dict(list(self._open.items())[_MOST_IDS // 2 :])
        flips = events[mine & ~passed & (events["journey"] != 0)]
        self.flips = flips[np.argsort(flips["time"], kind="stable")]
        self.begun += int((mine & ~passed).sum())
        asked: Array = events[~tools & (events["journey"] != 0)]
        return asked


class LegacyJourneys:
    """Of lines that legacy tables log: found by what they say of the packet."""

    def __init__(self, numbers: Numbers, accept: Accept) -> None:
        """`accept`: as of NftJourneys."""
        self.refused = 0
        self._numbers = numbers
        self._accept = accept
        self._newest: dict[int, int] = {}  # key of a packet → its newest journey
        self._flipped: dict[int, int] = {}  # journey → when it began, ns
        self._alike: dict[int, int] = {}  # the same, of what NAT leaves alone
        self._current: dict[int, int] = {}  # key → journey of the way that it is on
        self._waiting: dict[int, deque[tuple[int, int, bool]]] = {}  # flips: see _wait
        self._stage: dict[int, tuple[int, bool]] = {}  # where it was last, and was that over?

    def assign(self, lines: Array, keys: Keys, flips: Array, flip_keys: Keys) -> Array:
        """The lines that were asked for, with `journey`, packet by packet.

        `flips`: events of our own table since the last call, in order; `lines` have
        `hook`, `priority` and `last`.  Packets that look the same are told apart by
        their way: it begins again with each.
        """
        self._remember(self._newest, flip_keys.full, flips["journey"])
        self._remember(self._alike, flip_keys.alike, flips["journey"])
        self._remember(self._flipped, flips["journey"], flips["time"])
        self._wait(flip_keys.full, flips)
        if not len(lines):
            return lines
        order = np.argsort(keys.full, kind="stable")
        lines, full, alike = lines[order], keys.full[order], keys.alike[order]
        count = len(lines)
        stage = lines["hook"].astype(np.int64) << 32 | (lines["priority"].astype(np.int64) + 2**31)
        first = np.append(True, full[1:] != full[:-1])
        begins = np.append(
            True, (stage[1:] < stage[:-1]) | ((stage[1:] == stage[:-1]) & lines["last"][:-1])
        )
        heads = np.flatnonzero(first)
        goes_on = np.zeros(len(heads), bool)
        for i, (key, now) in enumerate(
            zip(full[heads].tolist(), stage[heads].tolist(), strict=True)
        ):
            before = self._stage.get(key)
            goes_on[i] = before is not None and (
                now > before[0] or (now == before[0] and not before[1])
            )
        begins[heads] = ~goes_on
        tails = np.append(heads[1:], count) - 1
        self._remember(
            self._stage,
            full[tails],
            zip(stage[tails].tolist(), lines["last"][tails].tolist(), strict=True),
        )
        found = np.zeros(count, np.uint64)
        for at in np.flatnonzero(first | begins).tolist():
            found[at] = self._find(lines, at, int(full[at]), int(alike[at]), bool(begins[at]))
        starts = np.maximum.accumulate(np.where(first | begins, np.arange(count), 0))
        lines["journey"] = found[starts]
        asked: Array = lines[lines["journey"] != 0]
        self._to_flips(asked)
        return asked

    def _find(self, lines: Array, at: int, key: int, alike: int, begins: bool) -> int:
        """The journey of the packet whose way goes on, or begins, with this line; 0: none."""
        journey = 0 if begins else self._current.get(key, 0)
        journey = journey or self._next(key, int(lines["hook"][at]), int(lines["time"][at]))
        journey = journey or self._newest.get(key) or self._alike.get(alike) or 0
        part = slice(at, at + 1)
        if not journey and self._accept(lines["packet"][part], lines["caplen"][part])[0]:
            journey = int(self._numbers.take(1)[0])
            self._newest[key] = self._alike[alike] = journey
        self.refused += not journey
        self._remember(self._current, np.array([key], np.uint64), [journey])
        return journey

    def _wait(self, keys: Array, flips: Array) -> None:
        """Each flip waits for the lines of its packet; of packets that look the same in order."""
        comes = (flips["iif"] != 0).tolist()
        told = zip(flips["journey"].tolist(), flips["time"].tolist(), comes, strict=True)
        for key, flip in zip(keys.tolist(), told, strict=True):
            waiting = self._waiting.setdefault(key, deque())
            while waiting and flip[1] - waiting[0][1] > _FRESH:
                waiting.popleft()
            waiting.append(flip)
        if len(self._waiting) > _MOST_IDS:
            for key in list(self._waiting)[: _MOST_IDS // 2]:
                del self._waiting[key]

    def _next(self, key: int, hook: int, time: int) -> int:
        """The journey of the first flip that may be of a line at `hook`; 0: none."""
        waiting = self._waiting.get(key, ())
        for at, (journey, began, comes) in enumerate(waiting):
            fits = hook == _POSTROUTING or comes == (hook < _OUTPUT)
            if fits and time - began <= _FRESH:
                for _ in range(at + 1):
                    self._waiting[key].popleft()
                if not self._waiting[key]:
                    del self._waiting[key]
                return journey
        return 0

    def _to_flips(self, lines: Array) -> None:
        """Lines come by a socket of their own, so that only their flip tells which was first."""
        if not len(lines):
            return
        journeys, inverse = np.unique(lines["journey"], return_inverse=True)
        begun = np.array([self._flipped.get(one, 0) for one in journeys.tolist()], np.uint64)[
            inverse
        ]
        near = (begun != 0) & (lines["time"].astype(np.int64) - begun.astype(np.int64) < _NEAR)
        lines["time"][near] = begun[near] + np.uint64(1)

    def _remember(self, held: dict[int, Any], keys: Array, values: Any) -> None:
        values = values.tolist() if isinstance(values, np.ndarray) else values
        for key, value in zip(keys.tolist(), values, strict=True):
            held.pop(key, None)
            held[key] = value
        if len(held) > _MOST_IDS:
            for key in list(held)[: _MOST_IDS // 2]:
                del held[key]


class Keys(NamedTuple):
    """uint64, shape (n,): equal for what may be the same packet.

    `full`: before NAT; `alike`: by what NAT leaves alone.
    """

    full: Array
    alike: Array


_PORTS: Final = np.isin(np.arange(256), [6, 17, 33, 132, 136])
_IDENTIFIED: Final = np.isin(np.arange(256), [1, 58])  # ICMP: the identifier is translated
# Of the transport header, what NAT changes: ports or identifier, and checksums.
_L4: Final = 20


def packet_keys(
    packets: Array, caplens: Array, tuples: Array | None = None, told: Array | None = None
) -> Keys:
    """The keys of packets, uint8 (n, k), from the network header on.

    `tuples`: uint8 (n, 36), source, destination and ports before NAT, where `told`.
    """
    count, width = packets.shape
    if not count:
        return Keys(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    six = packets[:, 0] >> 4 == 6
    proto = np.where(six, packets[:, 6], packets[:, 9]).astype(np.intp)
    l4 = np.where(six, 40, (packets[:, 0] & 15).astype(np.intp) * 4)
    column = np.arange(_L4)
    at = l4[:, None] + column
    there = at < np.minimum(caplens, width)[:, None]
    header = np.where(there, packets[np.arange(count)[:, None], np.minimum(at, width - 1)], 0)
    header = header.astype(np.uint8)
    ports = header[:, :4].copy()
    ports[_IDENTIFIED[proto], :2] = 0
    ports[_IDENTIFIED[proto], 2:] = header[_IDENTIFIED[proto], 4:6]
    ports[~_PORTS[proto] & ~_IDENTIFIED[proto]] = 0
    header[_PORTS[proto], :4] = 0
    header[proto == 6, 16:18] = 0
    header[(proto == 17) | (proto == 136), 6:8] = 0
    header[proto == 132, 8:12] = 0
    header[_IDENTIFIED[proto], 2:6] = 0
    header[_IDENTIFIED[proto], 18:20] = 0  # a checksum inside, where it is an error
    fixed = np.zeros((count, 24), np.uint8)
    fixed[:, :_L4] = header
    fixed[:, 20] = proto
    fixed[:, 21] = six
    rest = np.zeros((count, 8), np.uint8)
    rest[~six, :6] = packets[~six, 2:8]  # length, identification, fragment
    rest[~six, 4] &= 0x3F  # without DF
    rest[six, :2] = packets[six, 4:6]
    alike = _mix_bytes(np.concatenate([fixed, rest], axis=1))
    addresses = np.zeros((count, 40), np.uint8)
    addresses[~six, :4] = packets[~six, 12:16]
    addresses[~six, 16:20] = packets[~six, 16:20]
    addresses[six, :32] = packets[six, 8:40]
    addresses[:, 32:36] = ports
    if tuples is not None and told is not None:
        addresses[told, :36] = tuples[told]
    return Keys(_mix_bytes(addresses) ^ alike, alike)


def _mix_bytes(data: Array) -> Array:
    words = np.ascontiguousarray(data).view(np.uint64)
    found = np.zeros(len(data), np.uint64)
    for column in range(words.shape[1]):
        found = _mix(found, words[:, column])
    return found


def _mix(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore"):
        mixed = (a ^ b.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9) + a
        return mixed ^ mixed >> np.uint64(32)
