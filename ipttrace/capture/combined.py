# SPDX-License-Identifier: GPL-2.0-only
"""Both engines at once: legacy tables by the kernel's, nftables over netlink.

One stream, one timeline: what the two say of a packet becomes one journey, in the
order in which the packet met its tables.  Must not import bcc itself.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import Numbers, plain
from ipttrace.capture.netlink.engine import NetlinkEngine
from ipttrace.capture.netlink.journeys import Keys, LegacyJourneys, packet_keys
from ipttrace.capture.netlink.legacy import tables as nllegacy
from ipttrace.stream import record
from ipttrace.stream.record import ENTRY, EXIT, Records

# Of the calls of the netlink engine: above what the kernel's counts to.
FIRST: Final = 0xFE << 48
_REMEMBERED: Final = 1 << 16
_LINE: Final = np.dtype(
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
# enum ip_conntrack_info
_RELATED: Final = 1
_REPLY: Final = 3
_RELATED_REPLY: Final = 4


class BothEngines:
    """Has what every engine has.  `kernel` and `netlink` are armed already, and become its own."""

    name: Final = "kernel+netlink"

    def __init__(self, kernel: Any, netlink: NetlinkEngine) -> None:
        self.kernel = kernel
        self.netlink = netlink
        self.notes: list[tuple[str, str]] = []
        self.over = ""
        self.buffers = kernel.buffers
        self.buffers.watch(netlink.wake)
        self.changes = netlink.changes
        self._kernels, self._netlinks = _Held(), _Held()
        self._read: deque[tuple[int, int]] = deque()  # when all was read: from, until
        self._before = 0
        self._armed = True
        self._way = Way()

    def arm(self) -> None:
        """Starts both again."""
        self.kernel.arm()
        try:
            self.netlink.arm()
        except BaseException:
            self.kernel.disarm()
            raise
        self._armed = True

    def filter(self, program: bytes) -> None:
        """Replaces the filter of both."""
        refuse_inexact(nft_filter.compile(program))
        self.netlink.filter(program)
        self.kernel.filter(program)

    def disarm(self) -> None:
        """No record is written after this; those written wait to be taken."""
        try:
            self.netlink.disarm()
        finally:
            self.kernel.disarm()
        self._armed = False

    def take(self) -> list[Records]:
        """The records of a moment ago, those of one packet together."""
        self.netlink.drain_wake()
        # What packets of before this moment have caused is read by the end of it.
        begun = time.monotonic_ns()
        self.netlink.flush()
        self._read.append((begun, time.monotonic_ns()))
        self._kernels.add(self.kernel.take())
        self._netlinks.add(self.netlink.take(), self.netlink.priorities)
        for engine in (self.kernel, self.netlink):
            while engine.notes:
                self.notes.append(engine.notes.pop(0))
        before = self._settled() if self._armed else 1 << 63
        ours = self._kernels.take(before)
        theirs = self._netlinks
        joined = self._way.join(ours, theirs.records, theirs.priority, self.netlink.flips)
        over = theirs.take(before, joined)
        return [plain(np.concatenate([x, y])) for x, y in zip(ours, over, strict=True)]

    def _settled(self) -> int:
        """Of packets of before then all has been told, CLOCK_MONOTONIC ns."""
        settled = 0
        while self._read and self._read[0][1] < self.netlink.before:
            settled = self._read.popleft()[0]
        self._before = max(self._before, settled)
        return self._before

    def lost_exits(self) -> int:
        """As of the kernel engine."""
        return int(self.kernel.lost_exits())

    def books(self) -> dict[str, Any]:
        """The counters of both, added up."""
        kernel, netlink = self.kernel.books(), self.netlink.books()
        added = dict(kernel)
        for name in ("due", "delivered", "lost"):
            added[name] = [a + b for a, b in zip(kernel[name], netlink[name], strict=True)]
        for name in ("calls", "refused", "matched", "flipped", "missed"):
            added[name] = kernel[name] + netlink[name]
        return {**added, "engine": self.name, "filter": netlink["filter"]}

    def close(self) -> None:
        """Gives everything back."""
        self.buffers.unwatch(self.netlink.wake)
        try:
            self.netlink.close()
        finally:
            self.kernel.close()


def refuse_inexact(compiled: Any) -> None:
    """Raises CaptureError where nftables would flip what the kernel engine refuses.

    Such a packet's legacy rules would go to the kernel's log.
    """
    if not compiled.exact:
        raise CaptureError(
            "the filter cannot be said in nftables' words, so that only legacy tables are traced:"
            " --engine netlink traces all of them with it"
        )


class _Held:
    """Records that wait until the other engine has told of the same packets."""

    def __init__(self) -> None:
        self.records: list[Records] = [np.zeros(0, dtype) for dtype in record.DTYPES]
        self.priority = np.zeros(0, np.int32)  # of each entry's chain

    def add(self, records: list[Records], priority: Array | None = None) -> None:
        if priority is None:
            priority = np.zeros(len(records[ENTRY]), np.int32)
        if any(map(len, records)):
            both = zip(self.records, records, strict=True)
            self.records = [plain(np.concatenate([a, b])) for a, b in both]
            self.priority = np.concatenate([self.priority, priority])

    def take(self, before: int, too: Array | None = None) -> list[Records]:
        """The calls that began before `before`, CLOCK_MONOTONIC ns, and those of `too`."""
        entries = self.records[ENTRY]
        go = entries["time"] < before
        if too is not None:
            go |= too
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


class Way:
    """Finds the packets that both engines tell of."""

    def __init__(self) -> None:
        self._packets = LegacyJourneys(Numbers(), lambda packets, _: np.zeros(len(packets), bool))
        self._begun: dict[int, int] = {}  # journey over netlink → address of its skb

    def join(
        self, ours: list[Records], theirs: list[Records], priority: Array, flips: Array
    ) -> Array:
        """Gives calls over netlink the skb of the kernel's records of the same packet.

        In place: `skb`, where a journey begins, and of `theirs` the times, so that a
        journey is in order.  Where nothing of the kernel's is of the same packet, all
        stays.  `priority`: of the chain of each entry of `theirs`; `flips`: as of
        NftJourneys, since the last call.  Returns bool, of each entry of `theirs`: was
        the same packet found?
        """
        joined = np.zeros(len(theirs[ENTRY]), bool)
        entries, others = ours[ENTRY], theirs[ENTRY]
        journeys = self._journeys(entries, flips)
        place = _place(entries["hook"], priorities(entries))
        self._begin(entries, journeys, place)
        known = np.flatnonzero(journeys)
        if not len(known) or not len(others):
            return joined
        # The kernel's calls of packets that both tell of, packet by packet, in order.
        known = known[np.lexsort((place[known], journeys[known]))]
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
        their_place = _place(others["hook"][hit], priority[hit])
        # The first of the kernel's calls that comes after each of theirs.
        scale = np.int64(1) << 40
        after = np.searchsorted(which * scale + place[known], at * scale + their_place, "right")
        skb = entries["skb"][known[starts[at]]]
        bounded = after < ends[at]
        limit = entries["time"][known[np.minimum(after, len(known) - 1)]].astype(np.int64)
        # Several between the same two: in their order, a moment apart.
        order = np.lexsort((their_place, after))
        rank = np.zeros(len(hit), np.int64)
        groups = after[order]
        last = np.flatnonzero(np.append(groups[1:] != groups[:-1], True))
        rank[order] = last[np.searchsorted(last, np.arange(len(order)))] - np.arange(len(order))
        times = others["time"][hit].astype(np.int64)
        # After the last of the kernel's: at once, for the next packet may have its address.
        first = np.append(0, last[:-1] + 1)
        back = np.zeros(len(hit), np.int64)
        back[order] = np.arange(len(order)) - first[np.searchsorted(last, np.arange(len(order)))]
        previous = entries["time"][known[np.maximum(after - 1, 0)]].astype(np.int64)
        limit = np.where(bounded, limit - 1 - rank, previous + 1 + back)
        times = np.minimum(times, limit)
        calls = others["call"][hit]
        others["skb"][hit] = skb
        others["time"][hit] = times
        exits = theirs[EXIT]
        by_call = np.argsort(calls)
        found = np.minimum(np.searchsorted(calls[by_call], exits["call"]), len(calls) - 1)
        same = calls[by_call][found] == exits["call"]
        exits["skb"][same] = skb[by_call][found[same]]
        exits["time"][same] = np.maximum(times[by_call][found[same]], 0)
        # Where theirs comes first, the journey begins with it.
        early = np.flatnonzero(after == starts[at])
        for one in early[np.lexsort((times[early], at[early]))][::-1].tolist():
            begins = known[starts[at[one]]]
            if entries["flags"][begins] & record.F_FIRST:
                others["flags"][hit[early[at[early] == at[one]]]] &= ~np.uint8(record.F_FIRST)
                others["flags"][hit[one]] |= record.F_FIRST
        firsts = known[starts[np.unique(at[early])]]
        entries["flags"][firsts] &= ~np.uint8(record.F_FIRST)
        return joined

    def _journeys(self, entries: Array, flips: Array) -> Array:
        """uint64, shape (n,): the journeys of these packets over netlink, 0 where there is none."""
        lines = np.zeros(len(entries), _LINE)
        order = np.argsort(entries["time"], kind="stable")
        ordered = entries[order]
        lines["hook"], lines["priority"] = ordered["hook"], priorities(ordered)
        lines["time"], lines["caplen"] = ordered["time"], ordered["caplen"]
        lines["index"] = order
        begun = packet_keys(flips["packet"], flips["caplen"])
        asked = self._packets.assign(lines, entry_keys(ordered), flips, begun)
        found = np.zeros(len(entries), np.uint64)
        found[asked["index"]] = asked["journey"]
        return found

    def _begin(self, entries: Array, journeys: Array, place: Array) -> None:
        """Marks where journeys begin: nf_trace, by which the module knows it, is set before."""
        order = np.lexsort((place, entries["time"]))
        for at in order[journeys[order] != 0].tolist():
            journey = int(journeys[at])
            if journey not in self._begun:
                self._begun[journey] = int(entries["skb"][at])
                entries["flags"][at] |= record.F_FIRST
        if len(self._begun) > _REMEMBERED:
            self._begun = dict(list(self._begun.items())[_REMEMBERED // 2 :])


def _place(hooks: Array, priority: Array) -> Array:
    """int64, shape (n,): ascending in the order in which a packet meets chains."""
    found: Array = hooks.astype(np.int64) << 33 | (priority.astype(np.int64) + 2**31)
    return found


def priorities(entries: Array) -> Array:
    """int64, shape (n,): of the chains that legacy tables have at their hooks."""
    found = np.zeros(len(entries), np.int64)
    for table in np.unique(entries["table"]).tolist():
        of = entries["table"] == table
        for hook in np.unique(entries["hook"][of]).tolist():
            found[of & (entries["hook"] == hook)] = nllegacy.priority(
                table.decode("ascii", "replace"), hook
            )
    return found


def entry_keys(entries: Array) -> Keys:
    """As `packet_keys`, by what conntrack says of the packet before NAT."""
    told = (entries["flags"] & record.F_CONNTRACK != 0) & (entries["ct_orig_src"].any(axis=1))
    told &= (entries["ct_info"] != _RELATED) & (entries["ct_info"] != _RELATED_REPLY)
    reply = entries["ct_info"] >= _REPLY
    tuples = np.zeros((len(entries), 36), np.uint8)
    for way, rows in (("orig", ~reply), ("reply", reply)):
        tuples[rows, :16] = entries[f"ct_{way}_src"][rows]
        tuples[rows, 16:32] = entries[f"ct_{way}_dst"][rows]
        for at, side in ((32, "sport"), (34, "dport")):
            ports = np.ascontiguousarray(entries[f"ct_{way}_{side}"][rows]).astype(">u2")
            tuples[rows, at : at + 2] = ports.view(np.uint8).reshape(-1, 2)
    icmp = (entries["ct_proto"] == 1) | (entries["ct_proto"] == 58)
    tuples[icmp, 34:36] = tuples[icmp, 32:34]
    tuples[icmp, 32:34] = 0
    return packet_keys(entries["packet"][:, :60], np.minimum(entries["caplen"], 60), tuples, told)
