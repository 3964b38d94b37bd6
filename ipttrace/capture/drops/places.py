# SPDX-License-Identifier: GPL-2.0-only
"""Numbers for places and stacks in the kernel's code, for owners of sockets, and their meaning.

Records contain these numbers instead of addresses, so that no recording shows where the
kernel's code is.  What a number means goes into a PLACES frame ahead of the records.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.drops.owners import Owners
from ipttrace.capture.drops.symbols import Symbols
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import BTF, enumerators
from ipttrace.stream.messages import Places

Words = npt.NDArray[np.uint64]

_MOST_PLACES: Final = 1 << 14
_MOST_STACKS: Final = 1 << 12
_MOST_FRAMES: Final = 32  # of a stack, as named
_PREFIX: Final = "SKB_DROP_REASON_"
_SUBSYSTEM: Final = 16  # from this bit on, a reason has the number of who defines it
# The enums of reasons that modules define (net/dropreason.h).
_OTHERS: Final = (("mac80211_drop_reason", "mac80211"), ("ovs_drop_reason", "openvswitch"))
# Functions that free packets for their callers, whose doing it is.
_FREEING: Final = frozenset(
    (
        "kfree_skb",
        "kfree_skb_list",
        "kfree_skb_list_reason",
        "kfree_skb_reason",
        "skb_queue_purge",
        "skb_queue_purge_reason",
        "skb_rbtree_purge",
    )
)
# They drop messages for reasons of their own, and free those that they have handled alike.
_HANDLERS: Final = ("icmpv6_rcv", "igmp_rcv")
# The innermost frames of a stack are those of the tracepoint.
_TRACING: Final = ("bpf_", "__bpf_", "__traceiter_", "trace_call_bpf", "ftrace_")


class Reasons:
    """The kernel's names of reasons, by number."""

    def __init__(self, libbpf: Libbpf) -> None:
        self._libbpf = libbpf
        found = enumerators(libbpf, "skb_drop_reason")
        self._names = {
            number: name.removeprefix(_PREFIX)
            for number, name in found.items()
            if name.startswith(_PREFIX) and number < 1 << _SUBSYSTEM and name != f"{_PREFIX}MAX"
        }
        self._asked: set[str] = set()
        # The number of the reason that is none.
        self.unspecified = {name: one for one, name in self._names.items()}.get("NOT_SPECIFIED", 0)

    def name(self, reason: int) -> str:
        """Without SKB_DROP_REASON_; "" if it is unknown."""
        if reason >> _SUBSYSTEM and reason not in self._names:
            self._ask_modules()
        return self._names.get(reason, "")

    def _ask_modules(self) -> None:
        for enum, module in _OTHERS:
            if module in self._asked or not (BTF / module).exists():
                continue
            self._asked.add(module)
            for number, name in enumerators(self._libbpf, enum, module).items():
                if number >> _SUBSYSTEM and not name.startswith("__"):
                    self._names[number] = name


class PlaceBook:
    """Gives numbers from 1 on, and keeps what is new."""

    def __init__(self, libbpf: Libbpf) -> None:
        self._symbols = Symbols()
        self._reasons = Reasons(libbpf)
        self._places: dict[str, int] = {}
        self._stacks: dict[tuple[str, ...], int] = {}
        self._stacks_known: dict[bytes, int] = {}
        self._named: set[int] = set()  # reasons
        self._owners = Owners()
        self._new: Places = {}

    def places(self, addresses: Words, stacks: Words) -> Words:
        """The numbers of these places, 0: unknown; shape (n,).

        `stacks`: of each, shape (n, m): for a function that only frees packets, its caller counts.
        """
        addresses = addresses.copy()
        for one in np.unique(addresses).tolist():
            if self._frees(one):
                rows = np.flatnonzero(addresses == one)
                addresses[rows] = [self._caller(one, stacks[row].tolist()) for row in rows]
        each, inverse = np.unique(addresses, return_inverse=True)
        return np.array([self._place(one) for one in each.tolist()], np.uint64)[inverse]

    def stacks(self, addresses: Words) -> Words:
        """The numbers of stacks, shape (n, m), innermost place first; shape (n,)."""
        rows = np.ascontiguousarray(addresses)
        keys = rows.view(f"V{rows.shape[1] * 8}").ravel()
        each, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        found = [self._stack(key.tobytes(), rows[at]) for key, at in zip(each, first, strict=True)]
        return np.array(found, np.uint64)[inverse]

    def reasons(self, numbers: npt.NDArray[np.uint32]) -> None:
        """Notes these reasons, whose numbers stay as they are."""
        for one in np.unique(numbers).tolist():
            if one and one not in self._named and (name := self._reasons.name(one)):
                self._named.add(one)
                self._new.setdefault("reasons", {})[str(one)] = name

    def handled(self, places: Words, reasons: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which are not drops, although the kernel frees them alike: bool, shape (n,).

        `places`: as numbers.
        """
        numbers = [
            number for name, number in self._places.items() if name.partition("+")[0] in _HANDLERS
        ]
        found: npt.NDArray[np.bool_] = np.isin(places, np.array(numbers, np.uint64))
        return found & np.isin(reasons, np.array([0, self._reasons.unspecified], np.uint32))

    def owners(self, inodes: Words) -> Words:
        """The numbers of the processes that have the sockets with these inodes, 0: unknown."""
        numbers, new = self._owners.numbers(inodes)
        if new:
            self._new.setdefault("owners", {}).update(new)
        return numbers

    def take(self) -> Places | None:
        """What is new since the last call."""
        new, self._new = self._new, {}
        return new or None

    def _frees(self, address: int) -> bool:
        return bool(address) and self._symbols.name(address).partition("+")[0] in _FREEING

    def _caller(self, address: int, stack: list[int]) -> int:
        """The first place of the stack behind this one that does more than free packets."""
        try:
            behind = stack[stack.index(address) + 1 :]
        except ValueError:
            return address
        return next((one for one in behind if one and not self._frees(one)), address)

    def _place(self, address: int) -> int:
        name = self._symbols.name(address) if address else ""
        if not name:
            return 0
        number = self._places.get(name)
        if number is None:
            if len(self._places) >= _MOST_PLACES:
                return 0
            number = self._places[name] = len(self._places) + 1
            self._new.setdefault("places", {})[str(number)] = name
        return number

    def _stack(self, key: bytes, addresses: Words) -> int:
        if (known := self._stacks_known.get(key)) is not None:
            return known
        names = [self._symbols.name(one) for one in addresses[addresses != 0].tolist()]
        while names and (not names[0] or names[0].startswith(_TRACING)):
            del names[0]
        stack = tuple(names[:_MOST_FRAMES])
        number = self._stacks.get(stack, 0) if stack else 0
        if stack and not number and len(self._stacks) < _MOST_STACKS:
            number = self._stacks[stack] = len(self._stacks) + 1
            self._new.setdefault("stacks", {})[str(number)] = list(stack)
        if len(self._stacks_known) >= _MOST_STACKS:
            self._stacks_known.clear()
        self._stacks_known[key] = number
        return number
