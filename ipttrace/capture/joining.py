# SPDX-License-Identifier: GPL-2.0-only
"""Joins the calls that two engines report of one packet, the module's and nftables'.

Must not do I/O.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import dropped
from ipttrace.capture.netlink.events import UniqueNumbers
from ipttrace.capture.netlink.keys import Keys, packet_keys, tuples_before_nat
from ipttrace.capture.netlink.legacy import tables
from ipttrace.capture.netlink.legacy_journeys import LegacyJourneys, can_follow, chain_order
from ipttrace.stream import record
from ipttrace.stream.record import ENTRY, EXIT, Records

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


class JourneyJoiner:
    """Finds the packets that both engines report, and joins their journeys."""

    def __init__(self) -> None:
        self._journeys = LegacyJourneys(
            UniqueNumbers(), lambda packets, _: np.zeros(len(packets), bool)
        )
        # Netlink journey → addresses of the skbs that took it, in order
        self._skbs: dict[int, dict[int, None]] = {}

    def join(
        self,
        kernel: list[Records],
        netlink: list[Records],
        priority: Array,
        flips: Array,
        later: Array | None = None,
    ) -> Array:
        """Gives netlink calls the skb of the kernel engine's calls of the same packet.

        Changes in place: skb and F_FIRST of entries, and times of `netlink`, so that a
        journey is in order.  `priority`: of the chain of each entry of `netlink`, shape
        (n,); `flips`: NetlinkEngine.flips since the last call; `later`: entries that `kernel`
        will have in further calls.  Returns bool, shape (n,): which entries of `netlink` were
        joined.  Those behind an entry in `later` wait for it.
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
        if later is not None and len(later):
            last = known[ends[at[hit]] - 1]
            its_place = chain_order(others["hook"][hit], priority[hit])
            hit = hit[~_behind(later, entries["skb"][last], place[last], its_place)]
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


def _behind(later: Array, skbs: Array, places: Array, others: Array) -> Array:
    """Whether a packet's call comes after one in `later`: bool, shape (n,).

    `skbs`, `places`: the address of its skb and the last chain known of it; `others`: the
    chain of the call.  Places as chain_order.
    """
    later = later[np.argsort(later["time"], kind="stable")]
    addresses, first = np.unique(later["skb"], return_index=True)
    at = np.minimum(np.searchsorted(addresses, skbs), len(addresses) - 1)
    following = later[first[at]]
    next_place = chain_order(following["hook"], priorities(following))
    found: Array = (addresses[at] == skbs) & (next_place <= others)
    found &= (next_place != places) & can_follow(places, next_place)
    return found


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
