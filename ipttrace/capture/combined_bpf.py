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
from ipttrace.capture.engine import Engine
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import stream_layout
from ipttrace.capture.two_engines import HeldRecords, TwoEngines
from ipttrace.stream.record import ENTRY, F_FIRST, F_FOLLOWED, Records

# A run that takes longer than this, ns, may be taken after the packet's later ones.
_UNDER_WAY: Final = 5_000_000
_MOST_PACKETS: Final = 1 << 16
# What was last of a packet.
_FLIP, _KERNEL, _BPF = range(1, 4)


class KernelAndBpf(TwoEngines):
    """Both, as one engine.  Each must leave addresses as they are."""

    def __init__(self, kernel: Engine, bpf: BpfEngine, *, raw_addresses: bool = False) -> None:
        """`raw_addresses`: records contain the kernel's addresses as they are."""
        super().__init__("kernel+bpf", kernel, bpf)
        self.bpf = bpf
        self.changes = bpf.changes
        self._kernel_records, self._bpf_records = HeldRecords(), HeldRecords()
        self._firsts = FirstCalls()
        self._addresses = None if raw_addresses else HiddenAddresses()

    def take(self) -> list[Records]:
        """The records that have arrived, those of both engines up to the same time."""
        self._bpf_records.add(self.bpf.take())
        # After that: so all calls of the kernel engine before those of BPF are there.
        self._kernel_records.add(self.kernel.take())
        self.take_notes()
        before = self.bpf.before - _UNDER_WAY if self.armed else 1 << 63
        kernel, bpf = self._kernel_records.take(before), self._bpf_records.take(before)
        self._firsts.mark(kernel[ENTRY], bpf[ENTRY], self.bpf.take_flips(), before)
        records = [stream_layout(np.concatenate(parts)) for parts in zip(kernel, bpf, strict=True)]
        if self._addresses is not None:
            self._addresses.hide(records)
        return records


class FirstCalls:
    """Finds the first call of each packet, whichever engine saw it.

    The module cannot: nf_trace, by which it recognises packets that it follows, was set
    by the flip table before.  The programs see flips, but not the legacy tables behind.
    """

    def __init__(self) -> None:
        self._flips = np.zeros(0, np.dtype([("time", "<u8"), ("skb", "<u8")]))
        self._last: dict[int, int] = {}  # of the newest packets, by address: _FLIP, _KERNEL, _BPF

    def mark(self, kernel: Array, bpf: Array, flips: Array, before: int) -> None:
        """Sets F_FIRST of entries, in place.

        `kernel`, `bpf`: entries before the time `before`, ns, in any order; `flips`: since the
        last call, with time and skb.
        """
        flips = np.concatenate([self._flips, flips])
        later = flips["time"] >= np.uint64(before)
        self._flips, flips = flips[later], flips[~later]
        parts = (flips, kernel, bpf)
        skb = np.concatenate([one["skb"] for one in parts])
        if not len(skb):
            return
        time = np.concatenate([one["time"] for one in parts])
        kind = np.repeat(np.array([_FLIP, _KERNEL, _BPF]), [len(one) for one in parts])
        order = np.lexsort((kind, time, skb))
        skb, kind = skb[order], kind[order]
        head = np.append(True, skb[1:] != skb[:-1])
        previous = np.append(0, kind[:-1])
        heads = np.flatnonzero(head)
        previous[heads] = [self._last.get(one, 0) for one in skb[heads].tolist()]
        self._remember(skb, kind, np.append(heads[1:], len(skb)) - 1)
        first = np.empty(len(order), bool)
        first[order] = previous == _FLIP
        known = np.empty(len(order), bool)
        known[order] = previous == _KERNEL
        ours, theirs = first[len(flips) : -len(bpf) or None], slice(len(first) - len(bpf), None)
        kernel["flags"][ours] |= F_FIRST
        # The first run of nftables is not the packet's, if it was in a legacy table before.
        bpf["flags"][first[theirs]] |= F_FIRST
        bpf["flags"][known[theirs]] &= ~np.uint8(F_FIRST)
        bpf["flags"][known[theirs]] |= F_FOLLOWED

    def _remember(self, skb: Array, kind: Array, tails: Array) -> None:
        for one, what in zip(skb[tails].tolist(), kind[tails].tolist(), strict=True):
            self._last.pop(one, None)
            self._last[one] = what
        while len(self._last) > _MOST_PACKETS:
            del self._last[next(iter(self._last))]
