# SPDX-License-Identifier: GPL-2.0-only
"""What few rows have, beside the columns: stack, route, neighbour, owner of a station.

Rows refer to it by number; equal ones are stored once.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.row import Aside, Owner
from ipttrace.trace.store.names import Names

# A forged stream could have a new one in every record.
LIMIT: Final = 1 << 16
_STACKS_SIZE: Final = 16 << 20
"""Bytes that kernel stacks may take, about."""

ASIDE: Final = np.dtype(
    [
        ("stack", "<u4"),  # number of a stack, 0: none
        ("owner", "<u4"),  # number of an owner, 0: unknown
        ("route_table", "<u4"),
        ("gateway", "u1", (16,)),
        ("gateway_family", "u1"),
        ("route_type", "u1"),
        ("neighbour_state", "u1"),
        ("station_flags", "u1"),
    ]
)


class Asides:
    """Asides by number; 0 is empty, and stands for those beyond the limit."""

    def __init__(self, names: Names, limit: int = LIMIT) -> None:
        """`names`: those of the store, which has the places of stacks."""
        self._names = names
        self._limit = limit
        self._raw: list[bytes] = [np.zeros(1, ASIDE).tobytes()]
        self._ids: dict[bytes, int] = {self._raw[0]: 0}
        self._stacks: list[tuple[int, ...]] = [()]
        self._stack_ids: dict[tuple[int, ...], int] = {(): 0}
        self._owners: list[Owner | None] = [None]
        self._owner_ids: dict[Owner, int] = {}
        self._size = 0  # bytes of stacks

    def add_stack(self, places: Sequence[int]) -> int:
        """Returns the number of a stack of `places`, ids of Names; 0 beyond the limit."""
        key = tuple(places)
        number = self._stack_ids.get(key)
        if number is None:
            self._size += 40 * len(key) + 200
            if self._size > _STACKS_SIZE:
                return 0
            number = self._stack_ids[key] = len(self._stacks)
            self._stacks.append(key)
        return number

    def add_owner(self, owner: Owner) -> int:
        """Returns the number of an owner; 0 beyond the limit."""
        number = self._owner_ids.get(owner)
        if number is None:
            if len(self._owners) >= self._limit:
                return 0
            number = self._owner_ids[owner] = len(self._owners)
            self._owners.append(owner)
        return number

    def intern(self, asides: Array) -> Array:
        """Returns the numbers, uint32 (n,), of `asides`, ASIDE (n,)."""
        found = np.zeros(len(asides), np.uint32)
        raw = np.ascontiguousarray(asides).view(f"V{ASIDE.itemsize}")
        # As text of a fixed size, by which numpy can sort.
        kinds, of = np.unique(raw.view(f"S{ASIDE.itemsize}"), return_inverse=True)
        numbers = [self._number(kind.ljust(ASIDE.itemsize, b"\0")) for kind in kinds.tolist()]
        found[:] = np.array(numbers, np.uint32)[of]
        return found

    def _number(self, raw: bytes) -> int:
        number = self._ids.get(raw)
        if number is None:
            if len(self._raw) >= self._limit:
                return 0
            number = self._ids[raw] = len(self._raw)
            self._raw.append(raw)
        return number

    def get(self, number: int) -> Aside:
        """Returns an aside by its number."""
        of = np.frombuffer(self._raw[number], ASIDE)[0]
        return Aside(
            stack=tuple(self._names.text(place) for place in self._stacks[int(of["stack"])]),
            route_table=int(of["route_table"]),
            gateway=of["gateway"].tobytes(),
            gateway_family=int(of["gateway_family"]),
            route_type=int(of["route_type"]),
            neighbour_state=int(of["neighbour_state"]),
            flags=int(of["station_flags"]),
            owner=self._owners[int(of["owner"])],
        )
