# SPDX-License-Identifier: GPL-2.0-only
"""The names of places, stacks, reasons and owners in one stream, by number.  Must not do I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.row import Owner
from ipttrace.trace.store import Asides, Names

LONGEST: Final = 200
"""Characters of a name."""
_DEEPEST: Final = 32  # places of a stack
_SIZE: Final = 16 << 20  # bytes that names of one stream may take, about
_DIGITS: Final = 20


class Places:
    """Numbers in stations → ids of Names, and of Asides for stacks."""

    def __init__(self, names: Names, asides: Asides) -> None:
        self._names = names
        self._asides = asides
        self._size = 0
        self._parts = {name: _Numbers() for name in ("places", "stacks", "reasons", "owners")}

    def learn(self, frame: Mapping[str, Any]) -> None:
        """Adds a PLACES frame.  Raises StreamError.

        What is beyond the limit is not kept: those places are unknown then.
        """
        for part, numbers in self._parts.items():
            named = frame.get(part, {})
            if not isinstance(named, dict):
                raise StreamError(f"malformed {part} in the stream")
            for number, name in named.items():
                if not (number.isascii() and number.isdigit() and len(number) <= _DIGITS):
                    raise StreamError(f"malformed {part} in the stream")
                owner = _owner(name) if part == "owners" else None
                texts = _texts(name if part == "stacks" else [owner.comm if owner else name])
                self._size += sum(4 * len(text) + 200 for text in texts)
                key = int(number)
                if self._size > _SIZE or not 0 < key < 1 << 64:
                    continue
                if owner is not None:
                    numbers.put(key, self._asides.add_owner(owner))
                    continue
                ids = [self._names.add(text) for text in texts]
                numbers.put(key, self._asides.add_stack(ids) if part == "stacks" else ids[0])

    def places(self, numbers: Array) -> Array:
        """Returns the ids, uint32 (n,), of places, uint64 (n,); 0 if they have no name."""
        return self._parts["places"].get(numbers)[0]

    def stacks(self, numbers: Array) -> Array:
        """Returns the numbers in Asides, uint32 (n,), of stacks, uint64 (n,); 0 if unknown."""
        return self._parts["stacks"].get(numbers)[0]

    def owners(self, numbers: Array) -> Array:
        """Returns the numbers in Asides, uint32 (n,), of owners, uint64 (n,); 0 if unknown."""
        return self._parts["owners"].get(numbers)[0]

    def reasons(self, numbers: Array) -> Array:
        """Returns the ids, uint32 (n,), of reasons, uint32 (n,).

        A reason without a name is called by its number.
        """
        ids, known = self._parts["reasons"].get(numbers.astype(np.uint64))
        for number in np.unique(numbers[~known & (numbers != 0)]).tolist()[:_DEEPEST]:
            ids[numbers == number] = self._names.add(str(number))
        return ids


class _Numbers:
    """uint64 → uint32, in arrays."""

    def __init__(self) -> None:
        self._held: dict[int, int] = {}
        self._keys: Array = np.zeros(0, np.uint64)
        self._values: Array = np.zeros(0, np.uint32)

    def put(self, key: int, value: int) -> None:
        self._held[key] = value

    def get(self, keys: Array) -> tuple[Array, Array]:
        """Returns the values, uint32 (n,), 0 if unknown; and whether they are known."""
        if len(self._keys) != len(self._held):
            ordered = sorted(self._held)
            self._keys = np.array(ordered, np.uint64)
            self._values = np.array([self._held[key] for key in ordered], np.uint32)
        if not len(self._keys):
            return np.zeros(len(keys), np.uint32), np.zeros(len(keys), bool)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        known = self._keys[at] == keys
        return np.where(known, self._values[at], np.uint32(0)), known


def _owner(named: Any) -> Owner:
    if isinstance(named, dict):
        pid, comm, others = (named.get(key) for key in ("pid", "comm", "others"))
        if (
            type(pid) is int
            and type(others) is int
            and isinstance(comm, str)
            and 0 < pid < 1 << 32
            and 0 <= others < 1 << 32
        ):
            return Owner(pid, clean(comm, LONGEST), others)
    raise StreamError("malformed owners in the stream")


def _texts(names: Any) -> Sequence[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StreamError("malformed names of places in the stream")
    return [clean(name, LONGEST) for name in names[:_DEEPEST]]
