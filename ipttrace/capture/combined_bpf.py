# SPDX-License-Identifier: GPL-2.0-only
"""Both engines at once: the kernel engine for legacy tables, BPF programs for nftables.

Both know a packet by the address of its skb, and the time of each call; so one timeline needs
only one order.  Must not import bcc.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.bpf.engine import BpfEngine
from ipttrace.capture.bpf.runs import CARRIED, COPIED, FLIP_DTYPE, FLIPPED
from ipttrace.capture.engine import Engine
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.opaque import joined
from ipttrace.capture.two_engines import HeldRecords, TwoEngines
from ipttrace.stream.record import ENTRY, F_FIRST, F_FOLLOWED, Records

# A run that takes longer than this, ns, may be taken after the packet's later ones.
_UNDER_WAY: Final = 5_000_000
_MOST_PACKETS: Final = 1 << 16
# What was last of a packet: a call of either engine, or what FLIP_DTYPE has.
_KERNEL, _BPF, _FLIP = 1, 2, 3
_BEGINS: Final = (_FLIP + FLIPPED, _FLIP + COPIED)
_GOES_ON: Final = (_KERNEL, _FLIP + CARRIED)


class KernelAndBpf(TwoEngines):
    """Both, as one engine.  Each must leave addresses as they are."""

    def __init__(self, kernel: Engine, bpf: BpfEngine, *, raw_addresses: bool = False) -> None:
        """`raw_addresses`: records contain the kernel's addresses as they are."""
        super().__init__("kernel+bpf", kernel, bpf)
        self.bpf = bpf
        self.changes = bpf.changes
        self._kernel_records, self._bpf_records = HeldRecords(), HeldRecords()
        self._firsts = FirstCalls()
        self.addresses = HiddenAddresses()
        self._raw_addresses = raw_addresses

    def take(self) -> list[Records]:
        """The records that have arrived, those of both engines up to the same time."""
        self._bpf_records.add(self.bpf.take())
        # After that: so all calls of the kernel engine before those of BPF are there.
        known_before = self.take_kernel_records(self._kernel_records)
        self.take_notes()
        before = min(self.bpf.before - _UNDER_WAY, known_before) if self.armed else 1 << 63
        self.before = before
        kernel, bpf = self._kernel_records.take(before), self._bpf_records.take(before)
        self._firsts.mark(kernel[ENTRY], bpf[ENTRY], self.bpf.take_flips(), before)
        records = [joined(parts) for parts in zip(kernel, bpf, strict=True)]
        if not self._raw_addresses:
            self.addresses.hide(records)
        return records


class FirstCalls:
    """Finds the first call of each packet, whichever engine saw it, and whose copy it is.

    The module cannot: nf_trace, by which it recognises packets that it follows, was set
    by the flip table before.  The programs see flips and copies, but not the legacy tables behind.
    """

    def __init__(self) -> None:
        self._flips = np.zeros(0, FLIP_DTYPE)
        # Of the newest packets, by address: what was last, and its last call.
        self._last: dict[int, tuple[int, int]] = {}
        self._origins: dict[int, int] = {}  # of copies, by address: a call of the original

    def mark(self, kernel: Array, bpf: Array, flips: Array, before: int) -> None:
        """Sets F_FIRST of entries, and the parents of copies, in place.

        `kernel`, `bpf`: entries before the time `before`, ns, in any order; `flips`:
        FLIP_DTYPE, since the last call.
        """
        flips = np.concatenate([self._flips, flips])
        later = flips["time"] >= np.uint64(before)
        self._flips, flips = flips[later], flips[~later]
        parts = (flips, kernel, bpf)
        skb = np.concatenate([one["skb"] for one in parts])
        if not len(skb):
            return
        time = np.concatenate([one["time"] for one in parts])
        calls = np.repeat(np.array([_KERNEL, _BPF]), [len(kernel), len(bpf)])
        kind = np.concatenate([_FLIP + flips["what"].astype(np.int64), calls])
        call = np.concatenate([np.zeros(len(flips), np.uint64), kernel["call"], bpf["call"]])
        order = np.lexsort((np.where(kind < _FLIP, kind, 0), time, skb))
        skb, kind, call = skb[order], kind[order], call[order]
        head = np.append(True, skb[1:] != skb[:-1])
        previous = np.append(0, kind[:-1])
        heads = np.flatnonzero(head)
        previous[heads] = [self._last.get(one, (0, 0))[0] for one in skb[heads].tolist()]
        if self._origins or flips["original"].any():
            self._name_originals((kernel, bpf), flips, order, skb, time[order], call)
        self._remember(skb, kind, call, np.append(heads[1:], len(skb)) - 1)
        first = np.empty(len(order), bool)
        first[order] = np.isin(previous, _BEGINS)
        known = np.empty(len(order), bool)
        known[order] = np.isin(previous, _GOES_ON)
        ours = slice(len(flips), len(flips) + len(kernel))
        theirs = slice(ours.stop, None)
        kernel["flags"][first[ours]] |= F_FIRST
        # The module flips a carried packet again, as if it were new.
        carried = np.empty(len(order), bool)
        carried[order] = previous == _FLIP + CARRIED
        _go_on(kernel, carried[ours])
        # The first run of nftables is not the packet's, if it was in a legacy table before.
        bpf["flags"][first[theirs]] |= F_FIRST
        _go_on(bpf, known[theirs])

    def _name_originals(
        self,
        entries: tuple[Array, Array],
        flips: Array,
        order: Array,
        skb: Array,
        time: Array,
        call: Array,
    ) -> None:
        """Sets the parents of entries of copies: the last call of the original before the copy.

        `skb`, `time`, `call`: of flips and of both engines' entries, in `order`.
        """
        origin: dict[int, int] = {}  # by place among them, of each flip; 0: no copy
        copies = np.flatnonzero(order < len(flips))
        for at in copies.tolist():
            original = int(flips["original"][order[at]])
            origin[at] = self._last_call(original, int(time[at]), skb, time, call)
        both = np.concatenate([one["parent"] for one in entries])
        depths = np.concatenate([one["depth"] for one in entries])
        changed = {*skb[copies].tolist(), *self._origins}
        for at in np.flatnonzero(np.isin(skb, np.array([*changed], np.uint64))).tolist():
            address, entry = int(skb[at]), int(order[at]) - len(flips)
            if at in origin:
                self._origins.pop(address, None)
                if origin[at]:
                    self._origins[address] = origin[at]
            elif entry >= 0 and not depths[entry]:
                both[entry] = self._origins.get(address, both[entry])
        while len(self._origins) > _MOST_PACKETS:
            del self._origins[next(iter(self._origins))]
        entries[0]["parent"], entries[1]["parent"] = np.split(both, [len(entries[0])])

    def _last_call(self, address: int, until: int, skb: Array, time: Array, call: Array) -> int:
        """The packet's last call before this time, 0 if there is none or `address` is 0."""
        if not address:
            return 0
        begin = int(np.searchsorted(skb, np.uint64(address)))
        end = int(np.searchsorted(skb, np.uint64(address), "right"))
        mine = np.flatnonzero((call[begin:end] != 0) & (time[begin:end] < np.uint64(until)))
        if len(mine):
            return int(call[begin + mine[-1]])
        return self._last.get(address, (0, 0))[1]

    def _remember(self, skb: Array, kind: Array, call: Array, tails: Array) -> None:
        columns = (each[tails].tolist() for each in (skb, kind, call))
        for one, what, its in zip(*columns, strict=True):
            before = self._last.pop(one, (0, 0))
            self._last[one] = (what, its or before[1])
        while len(self._last) > _MOST_PACKETS:
            del self._last[next(iter(self._last))]


def _go_on(entries: Array, which: Array) -> None:
    """Marks entries, bool (n,), as those of a packet that had calls before."""
    entries["flags"][which] &= ~np.uint8(F_FIRST)
    entries["flags"][which] |= F_FOLLOWED
