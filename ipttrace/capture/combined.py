# SPDX-License-Identifier: GPL-2.0-only
"""Both engines at once: the kernel engine for legacy tables, the netlink engine for nftables.

One stream, one timeline: the calls of a packet, from both engines, become one journey, in
the order in which the packet met the chains.  Must not import bcc.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import numpy as np

from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.filter.nft import Compiled
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import dropped, stream_layout
from ipttrace.capture.netlink.engine import NetlinkEngine
from ipttrace.capture.netlink.events import UniqueNumbers
from ipttrace.capture.netlink.journeys import LegacyJourneys, chain_order
from ipttrace.capture.netlink.keys import Keys, packet_keys, tuples_before_nat
from ipttrace.capture.netlink.legacy import tables
from ipttrace.capture.netlink.quiet import quietest, spans
from ipttrace.stream import record
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import ENTRY, EXIT, Records

# The first number of the netlink engine's calls: the kernel engine's stay below it.
FIRST: Final = 0xFE << 48
_MOST_JOURNEYS: Final = 1 << 16
# A kernel entry as LegacyJourneys.assign takes it; `index`: of the entry.
_EVENT: Final = np.dtype(
    [
        ("time", "u8"),
        ("journey", "u8"),
        ("index", "i8"),
        ("priority", "i4"),
        ("hook", "u1"),
        ("last", "?"),
        ("caplen", "u2"),
        ("packet", "u1", (1,)),
    ]
)
_KEY_BYTES: Final = 60  # of a packet: netlink's flips have no more
# How long a packet may take from one chain to the next, ns, so that its calls are joined.
_UNDER_WAY: Final = 5_000_000


class BothEngines:
    """An engine that runs two, which are armed already, and closes them."""

    name: Final = "kernel+netlink"

    def __init__(self, kernel: Engine, netlink: NetlinkEngine) -> None:
        self.kernel = kernel
        self.netlink = netlink
        self.notes: list[tuple[Level, str]] = []
        self.names = netlink.names
        self.over = ""
        self.buffers = kernel.buffers
        self.buffers.watch(netlink.wake)
        self.changes = netlink.changes
        self._kernel_records, self._netlink_records = _HeldRecords(), _HeldRecords()
        # Each flush of netlink's sockets: when it began and ended, CLOCK_MONOTONIC ns.
        self._flushes: deque[tuple[int, int]] = deque()
        self._settled = 0
        self._armed = True
        self._joiner = JourneyJoiner()

    def arm(self) -> None:
        """Starts both engines.  Raises CaptureError, with neither started."""
        self.kernel.arm()
        try:
            self.netlink.arm()
        except BaseException:
            self.kernel.disarm()
            raise
        self._armed = True

    def filter(self, program: bytes) -> None:
        """Replaces the filter of both engines.  Raises CaptureError, FilterError."""
        refuse_inexact(nft_filter.compile(program))
        self.netlink.filter(program)
        self.kernel.filter(program)

    def disarm(self) -> None:
        """No record is written after this; records written before can still be taken."""
        try:
            self.netlink.disarm()
        finally:
            self.kernel.disarm()
        self._armed = False

    def take(self) -> list[Records]:
        """The records that have arrived and settled, those of one packet together."""
        self.netlink.drain_wake()
        begun = time.monotonic_ns()
        if self.netlink.flush():
            self._flushes.append((begun, time.monotonic_ns()))
        self._kernel_records.add(self.kernel.take())
        self._netlink_records.add(self.netlink.take(), self.netlink.priorities)
        for engine in (self.kernel, self.netlink):
            while engine.notes:
                self.notes.append(engine.notes.pop(0))
        self.over = self.kernel.over
        before = self._settled_before() if self._armed else 1 << 63
        kernel = self._kernel_records.take(before)
        held = self._netlink_records
        joined = self._joiner.join(kernel, held.records, held.priority, self.netlink.flips)
        netlink = held.take(before, joined)
        return [stream_layout(np.concatenate(parts)) for parts in zip(kernel, netlink, strict=True)]

    def _settled_before(self) -> int:
        """All calls of packets that came to a table before this time have been taken.

        CLOCK_MONOTONIC, ns.  A flush reads every message about packets before it began; the
        messages of chains behind the table are sent a little later.
        """
        while self._flushes and self._flushes[0][1] < self.netlink.before:
            self._settled = max(self._settled, self._flushes.popleft()[0])
        held = (self._kernel_records, self._netlink_records)
        times = np.concatenate([one.records[ENTRY]["time"] for one in held])
        return quietest(spans(times), self._settled - _UNDER_WAY)

    def lost_exits(self) -> int:
        """The kernel engine's; the netlink engine loses messages, never known exits."""
        return self.kernel.lost_exits()

    def books(self) -> Books:
        """The counters of both engines, added up."""
        kernel, netlink = self.kernel.books(), self.netlink.books()
        return {
            **kernel,
            "engine": self.name,
            "calls": kernel["calls"] + netlink["calls"],
            "refused": kernel["refused"] + netlink["refused"],
            "matched": kernel["matched"] + netlink["matched"],
            "flipped": kernel["flipped"] + netlink["flipped"],
            "due": _sums(kernel["due"], netlink["due"]),
            "delivered": _sums(kernel["delivered"], netlink["delivered"]),
            "lost": _sums(kernel["lost"], netlink["lost"]),
            "missed": kernel["missed"] + netlink["missed"],
            "filter": netlink["filter"],
        }

    def close(self) -> None:
        """Disarms and closes both engines."""
        self.buffers.unwatch(self.netlink.wake)
        try:
            self.netlink.close()
        finally:
            self.kernel.close()


def _sums(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def refuse_inexact(compiled: Compiled) -> None:
    """Raises CaptureError if nftables would flip packets that the kernel engine rejects.

    Legacy tables would write the rule hits of such packets to the kernel's log.
    """
    if not compiled.exact:
        raise CaptureError(
            "nftables cannot express this filter, so only legacy tables are traced: "
            "--engine netlink traces both"
        )


class _HeldRecords:
    """Records of one engine that wait for the other engine's records of the same packets."""

    def __init__(self) -> None:
        self.records: list[Records] = [np.zeros(0, dtype) for dtype in record.DTYPES]
        self.priority = np.zeros(0, np.int32)  # of each entry's chain

    def add(self, records: list[Records], priority: Array | None = None) -> None:
        """`records`: entries, rules, exits; `priority`: of each entry's chain, shape (n,)."""
        if priority is None:
            priority = np.zeros(len(records[ENTRY]), np.int32)
        if any(map(len, records)):
            both = zip(self.records, records, strict=True)
            self.records = [stream_layout(np.concatenate([a, b])) for a, b in both]
            self.priority = np.concatenate([self.priority, priority])

    def take(self, before: int, also: Array | None = None) -> list[Records]:
        """Removes and returns the records of calls that began before `before`.

        `before`: CLOCK_MONOTONIC, ns; `also`: bool, of each entry: further calls.
        """
        entries = self.records[ENTRY]
        go = entries["time"] < before
        if also is not None:
            go |= also
        if go.all():
            taken, self.records = self.records, [part[:0] for part in self.records]
            self.priority = self.priority[:0]
            return taken
        stay = entries["call"][~go]
        taken, kept = [entries[go]], [entries[~go]]
        for part in self.records[ENTRY + 1 :]:
            later = np.isin(part["call"], stay)
            taken.append(part[~later])
            kept.append(part[later])
        self.priority = self.priority[~go]
        self.records = kept
        return taken


class JourneyJoiner:
    """Finds the packets that both engines report, and joins their journeys."""

    def __init__(self) -> None:
        self._journeys = LegacyJourneys(
            UniqueNumbers(), lambda packets, _: np.zeros(len(packets), bool)
        )
        # Netlink journey → addresses of the skbs that took it, in order
        self._skbs: dict[int, dict[int, None]] = {}

    def join(
        self, kernel: list[Records], netlink: list[Records], priority: Array, flips: Array
    ) -> Array:
        """Gives netlink calls the skb of the kernel engine's calls of the same packet.

        Changes in place: skb and F_FIRST of entries, and times of `netlink`, so that a
        journey is in order.  `priority`: of the chain of each entry of `netlink`, shape
        (n,); `flips`: NetlinkEngine.flips since the last call.  Returns bool, shape (n,):
        which entries of `netlink` were joined.
        """
        joined = np.zeros(len(netlink[ENTRY]), bool)
        entries, others = kernel[ENTRY], netlink[ENTRY]
        journeys = self._assign(entries, flips)
        place = chain_order(entries["hook"], priorities(entries))
        self._begin(entries, journeys, place)
        # Of one priority: netlink's calls that are known to come first, the kernel engine's,
        # the other ones of netlink.  Nothing follows a drop.
        chain = place * 4 + np.where(_of_drops(kernel, slice(None)), 3, 1)
        known = np.flatnonzero(journeys)
        if not len(known) or not len(others):
            return joined
        # The kernel engine's calls of packets that both report, by packet and chain.
        known = known[np.lexsort((chain[known], journeys[known]))]
        packets, which = np.unique(journeys[known], return_inverse=True)
        which = which.astype(np.int64)
        starts = np.searchsorted(which, np.arange(len(packets)))
        ends = np.append(starts[1:], len(known))
        at = np.minimum(np.searchsorted(packets, others["skb"]), len(packets) - 1)
        hit = np.flatnonzero(packets[at] == others["skb"])
        if not len(hit):
            return joined
        joined[hit] = True
        at = at[hit]
        other_place = chain_order(others["hook"][hit], priority[hit])
        first = come_first(
            entries[known], which << 40 | place[known], at.astype(np.int64) << 40 | other_place
        )
        first &= ~_of_drops(netlink, hit)
        other_chain = other_place * 4 + np.where(first, 0, 2)
        # Of each netlink call: the kernel engine's first call after it.
        scale = np.int64(1) << 42
        after = np.searchsorted(which * scale + chain[known], at * scale + other_chain, "right")
        skb = entries["skb"][known[starts[at]]]
        bounded = after < ends[at]
        limit = entries["time"][known[np.minimum(after, len(known) - 1)]].astype(np.int64)
        # Several between the same two calls: by chain, a nanosecond apart.
        order = np.lexsort((other_chain, after))
        rank = np.zeros(len(hit), np.int64)
        groups = after[order]
        last = np.flatnonzero(np.append(groups[1:] != groups[:-1], True))
        rank[order] = last[np.searchsorted(last, np.arange(len(order)))] - np.arange(len(order))
        times = others["time"][hit].astype(np.int64)
        # After the packet's last kernel call: at once, as its skb may soon be reused.
        begins = np.append(0, last[:-1] + 1)
        back = np.zeros(len(hit), np.int64)
        back[order] = np.arange(len(order)) - begins[np.searchsorted(last, np.arange(len(order)))]
        previous = entries["time"][known[np.maximum(after - 1, 0)]].astype(np.int64)
        limit = np.where(bounded, limit - 1 - rank, previous + 1 + back)
        times = np.minimum(times, limit)
        calls = others["call"][hit]
        others["skb"][hit] = skb
        others["time"][hit] = times
        exits = netlink[EXIT]
        by_call = np.argsort(calls)
        found = np.minimum(np.searchsorted(calls[by_call], exits["call"]), len(calls) - 1)
        same = calls[by_call][found] == exits["call"]
        exits["skb"][same] = skb[by_call][found[same]]
        exits["time"][same] = np.maximum(times[by_call][found[same]], 0)
        # If a netlink call comes first, the journey begins with it.
        early = np.flatnonzero(after == starts[at])
        for one in early[np.lexsort((times[early], at[early]))][::-1].tolist():
            begin = known[starts[at[one]]]
            if entries["flags"][begin] & record.F_FIRST:
                others["flags"][hit[early[at[early] == at[one]]]] &= ~np.uint8(record.F_FIRST)
                others["flags"][hit[one]] |= record.F_FIRST
        firsts = known[starts[np.unique(at[early])]]
        entries["flags"][firsts] &= ~np.uint8(record.F_FIRST)
        return joined

    def _assign(self, entries: Array, flips: Array) -> Array:
        """The netlink journey of each kernel entry, 0 if there is none: uint64, shape (n,)."""
        events = np.zeros(len(entries), _EVENT)
        order = np.argsort(entries["time"], kind="stable")
        ordered = entries[order]
        events["hook"], events["priority"] = ordered["hook"], priorities(ordered)
        events["time"], events["caplen"] = ordered["time"], ordered["caplen"]
        events["index"], events["last"] = order, True
        flip_keys = packet_keys(flips["packet"], flips["caplen"])
        keys = entry_keys(ordered)
        matching = self._journeys.assign(events, keys, flips, flip_keys, skbs=ordered["skb"])
        found = np.zeros(len(entries), np.uint64)
        found[matching["index"]] = matching["journey"]
        return found

    def _begin(self, entries: Array, journeys: Array, chain: Array) -> None:
        """Sets F_FIRST on the first entry of each packet; takes journeys from other skbs.

        The module cannot: nf_trace, by which it recognises packets that it follows, was
        set by the flip table before.  A packet keeps its skb: one at another address only looks
        like the packet whose journey `journeys` has for it, and none is known.
        """
        order = np.lexsort((chain, entries["time"]))
        for at in order[journeys[order] != 0].tolist():
            skb = int(entries["skb"][at])
            skbs = self._skbs.setdefault(int(journeys[at]), {})
            if skb not in skbs:
                skbs[skb] = None
                entries["flags"][at] |= record.F_FIRST
            if skb != next(iter(skbs)):
                journeys[at] = 0
        if len(self._skbs) > _MOST_JOURNEYS:
            self._skbs = dict(list(self._skbs.items())[_MOST_JOURNEYS // 2 :])


def _of_drops(records: list[Records], which: Any) -> Array:
    """Which of these calls are known to have dropped the packet: bool, shape (n,)."""
    exits = records[EXIT]
    found: Array = np.isin(records[ENTRY]["call"][which], exits["call"][dropped(exits)])
    return found


def come_first(entries: Array, places: Array, others: Array) -> Array:
    """Which calls of nftables came before the legacy table of their priority: bool, shape (n,).

    `entries`: of the module, which counts the chains of the table's priority at the hook;
    `places`: of each of them a number for packet, hook and priority; `others`: those of the
    calls of nftables, in the order in which the packet met the chains.  If there are more
    or fewer calls than the module's counts allow, none is said to have come first.
    """
    known, one, tables = np.unique(places, return_index=True, return_counts=True)
    met, inverse, calls = np.unique(others, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    rank = np.zeros(len(others), np.int64)  # of the call, among the packet's at this place
    rank[order] = np.arange(len(others)) - np.repeat(np.cumsum(calls) - calls, calls)
    at = np.minimum(np.searchsorted(known, met), len(known) - 1)
    before = entries["nft_before"][one[at]].astype(np.int64)
    sure = (known[at] == met) & (tables[at] == 1)
    sure &= (before <= calls) & (calls <= before + entries["nft_behind"][one[at]])
    found: Array = sure[inverse] & (rank < before[inverse])
    return found


def priorities(entries: Array) -> Array:
    """The priorities of the chains that legacy tables have at hooks: int64, shape (n,)."""
    names, index = np.unique(entries["table"], return_inverse=True)
    return tables.priorities(names.tolist(), index, entries["hook"])


def entry_keys(entries: Array) -> Keys:
    """The packet_keys of entry records, shape (n,)."""
    tuples, valid = tuples_before_nat(entries)
    valid &= entries["ct_orig_src"].any(axis=1)
    caplens = np.minimum(entries["caplen"], _KEY_BYTES)
    return packet_keys(entries["packet"][:, :_KEY_BYTES], caplens, tuples, valid)
