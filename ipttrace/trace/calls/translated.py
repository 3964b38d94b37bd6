# SPDX-License-Identifier: GPL-2.0-only
"""Which flow a packet's addresses belong to, if NAT made them of others.

Conntrack's entry says so, or else the packet itself, which shows both on its way: the
one that was seen first is the flow.  Addresses that NAT gave to one connection are
given to others later, so what was learned last counts.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array, Recent
from ipttrace.trace.calls.aliases import Aliases
from ipttrace.trace.decode import protocol as ip

_TRANSLATED: Final = 1 << 16
_SEEN: Final = 1 << 15  # flows whose first packet is remembered
_OPEN: Final = 1 << 10  # packets that may appear in the next batch, too
_NOBODY: Final = -1  # no number of a namespace
_PASSES: Final = 4  # for flows that are joined to others in the same batch


@dataclass(slots=True)
class Tuples:
    """Addresses, arrays (n,): src and dst (n, 16)."""

    src: Array
    dst: Array
    sport: Array
    dport: Array
    proto: Array  # protocol, zone and family as one word

    def set(self, rows: Array, other: Tuples) -> None:
        """Replaces the tuples at `rows`."""
        self.src[rows] = other.src
        self.dst[rows] = other.dst
        self.sport[rows] = other.sport
        self.dport[rows] = other.dport
        self.proto[rows] = other.proto

    def at(self, rows: Array | slice) -> Tuples:
        """Returns the tuples at `rows`."""
        return Tuples(
            self.src[rows], self.dst[rows], self.sport[rows], self.dport[rows], self.proto[rows]
        )

    def then(self, other: Tuples) -> Tuples:
        """Returns these tuples and `other`."""
        return Tuples(
            np.concatenate([self.src, other.src]),
            np.concatenate([self.dst, other.dst]),
            np.concatenate([self.sport, other.sport]),
            np.concatenate([self.dport, other.dport]),
            np.concatenate([self.proto, other.proto]),
        )


@dataclass(slots=True)
class Seen:
    """Packets, arrays (n,), in order of time."""

    journeys: Array  # uint64
    flows: Array  # uint64: as their addresses say
    tuples: Tuples
    begun: Array  # uint64: the number of a packet's first row; at first each row's own

    def at(self, rows: Array | slice) -> Seen:
        """Returns the packets at `rows`."""
        return Seen(self.journeys[rows], self.flows[rows], self.tuples.at(rows), self.begun[rows])

    def then(self, other: Seen) -> Seen:
        """Returns these packets and `other`."""
        return Seen(
            np.concatenate([self.journeys, other.journeys]),
            np.concatenate([self.flows, other.flows]),
            self.tuples.then(other.tuples),
            np.concatenate([self.begun, other.begun]),
        )


class Translated:
    """Flows by their addresses → the flow that they are."""

    def __init__(self, aliases: Aliases) -> None:
        """`aliases`: gets the flows that rows of earlier batches must be read with."""
        self._aliases = aliases
        self._roots = Recent(_TRANSLATED)
        self._made_in = Recent(_TRANSLATED)  # the namespace whose conntrack says so
        self._first = Recent(_SEEN)  # the number of the row that had these addresses first
        self._makers: int | None = _NOBODY  # the namespace in which all was learned; None: several
        self._count = 0  # rows so far
        self._open: Seen | None = None

    def __len__(self) -> int:
        return len(self._roots)

    def roots(self, flows: Array) -> Array:
        """Returns uint64 (n,): the flow that each of `flows` is, often itself."""
        return self._roots.follow(flows)

    def matters_in(self, netns: Array) -> bool:
        """Whether packets in these namespaces (n,) may have addresses that another made."""
        return self._makers is None or bool((netns != self._makers).any())

    def roots_elsewhere(self, flows: Array, netns: Array) -> Array:
        """Likewise, of packets that have conntrack entries of their own, in these namespaces.

        Within one namespace, two entries cannot have the same addresses at the same time: what
        another contained about them is out of date.
        """
        found = self.roots(flows)
        if found is not flows:
            by, known = self._made_in.get(flows)
            found = np.where(known & (by == netns), flows, found)
        return found

    def learn(
        self,
        flows: Array,
        roots: Array,
        now: int,
        netns: Array | None = None,
        rows: Array | slice = slice(None),
    ) -> None:
        """Notes that addresses of `flows` (n,) are those of `roots` (n,).

        `now`: ns since the epoch; `netns[rows]` (n,): whose conntrack says so.
        """
        held, known = self._roots.get(flows)
        differ = ~known | (held != roots)
        if not differ.any():
            return
        flows, roots = flows[differ], self.roots(roots[differ])
        new = ~known[differ]
        own = flows == roots
        if own.any():
            flows, roots, new, differ[differ] = flows[~own], roots[~own], new[~own], ~own
        self._roots.put(flows, roots)
        makers = np.zeros(len(flows), np.uint64) if netns is None else netns[rows][differ]
        if netns is not None:
            self._made_in.put(flows, makers.astype(np.uint64))
        if self._makers == _NOBODY and len(makers):
            self._makers = int(makers[0])
        if self._makers is not None and bool((makers != self._makers).any()):
            self._makers = None
        if new.any():
            self._aliases.add(flows[new], roots[new], now)

    def join(self, journeys: Array, flows: Array, tuples: Tuples, now: int) -> None:
        """Learns which flows the addresses are that the same packet showed, one after another.

        `journeys`, `flows`: uint64 (n,), in order of time.
        """
        numbers = np.arange(self._count + 1, self._count + 1 + len(flows), dtype=np.uint64)
        self._count += len(flows)
        known = self._first.get(flows)[1]
        if not known.all():
            new, first = np.unique(flows[~known], return_index=True)
            self._first.put(new, numbers[~known][first])
        seen = Seen(journeys, flows, tuples, numbers)
        if self._open is not None:
            seen = self._open.at(slice(-_OPEN, None)).then(seen)
        order = np.argsort(seen.journeys, kind="stable")
        journeys, flows = seen.journeys[order], seen.flows[order]
        same = journeys[1:] == journeys[:-1]
        heads = np.maximum.accumulate(np.where(np.append(False, same), 0, np.arange(len(order))))
        seen.begun[order] = seen.begun[order[heads]]
        at = np.flatnonzero(same & (flows[1:] != flows[:-1]))
        if at.size:
            # In order of time: what was learned last counts.
            at = at[np.argsort(order[at + 1])]
            self._learn_pairs(seen, order[at], order[at + 1], now)
        last = np.sort(order[np.flatnonzero(np.append(~same, True))])
        self._open = seen.at(last)

    def of_packets(self, journeys: Array, tuples: Tuples) -> tuple[Array, Array]:
        """Returns the flows, uint64 (n,), of these packets, and whether they are known, bool (n,).

        Known are those of the batch that was joined last, if they have the same addresses.
        """
        held = self._open
        if held is None:
            return np.zeros(len(journeys), np.uint64), np.zeros(len(journeys), bool)
        order = np.argsort(held.journeys)
        at = np.searchsorted(held.journeys[order], journeys)
        at[at == len(order)] = 0
        at = order[at]
        known = held.journeys[at] == journeys
        known &= (held.tuples.src[at] == tuples.src).all(axis=1)
        known &= (held.tuples.dst[at] == tuples.dst).all(axis=1)
        return held.flows[at], known

    def _learn_pairs(self, seen: Seen, one: Array, other: Array, now: int) -> None:
        """Joins the flows of rows `one` and `other` (n,) of the same packets, in this order."""
        differ = self.roots(seen.flows[one]) != self.roots(seen.flows[other])
        one, other = one[differ], other[differ]
        if not one.size:
            return
        a, b = seen.tuples.at(one), seen.tuples.at(other)
        # NAT changes one end at a time.  A tunnel's inner packet has other ends.
        # NAT may change the identifier of an ICMP query, which stands for both ports.
        icmp = np.isin(a.proto & np.uint32(0xFF), (ip.ICMP, ip.ICMPV6))
        same_src = (a.src == b.src).all(axis=1) & ((a.sport == b.sport) | icmp)
        same_dst = (a.dst == b.dst).all(axis=1) & ((a.dport == b.dport) | icmp)
        near = (a.proto == b.proto) & (same_src | same_dst)
        one, other, moved = one[near], other[near], same_dst[near]
        flows, others, begun = seen.flows[one], seen.flows[other], seen.begun[one]
        for _ in range(_PASSES):
            root, other_root = self.roots(flows), self.roots(others)
            differ = root != other_root
            if not differ.any():
                break
            flows, others, begun, moved, root, other_root = (
                some[differ] for some in (flows, others, begun, moved, root, other_root)
            )
            first = self._loses(flows, others, root, other_root, begun, moved)
            self.learn(np.where(first, flows, others), np.where(first, other_root, root), now)

    def _loses(
        self,
        flows: Array,
        others: Array,
        root: Array,
        other_root: Array,
        begun: Array,
        moved: Array,
    ) -> Array:
        """Returns bool (n,): are `flows` part of the flow of `others`, not the reverse?

        `moved`: has the source changed, not the destination?
        """
        mapped, other_mapped = root != flows, other_root != others
        first, _ = self._first.get(flows)
        other_first, _ = self._first.get(others)
        new, other_new = first >= begun, ~other_mapped & (other_first >= begun)
        # Addresses that an earlier packet had are the flow; else those that came first.
        later: Array = np.where(new == other_new, first > other_first, new)
        # If one of them is known to be part of a flow: NAT gave this packet the source, or
        # is about to take the destination away, and either may belong to an ended connection.
        loses: Array = np.where(mapped | other_mapped, ~moved & ~other_new, later)
        return loses
