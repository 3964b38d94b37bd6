# SPDX-License-Identifier: GPL-2.0-only
"""Names as ids: each name from the kernel is cleaned and stored once.

A record has 32 bytes for a name: longer ones are there in a short form, and a NAMES frame
before has the full ones.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ipttrace.stream.frames import StreamError
from ipttrace.text import LIMIT as LONGEST
from ipttrace.text import clean
from ipttrace.trace.arrays import Array, Hash

# A forged stream could have a new name in every record.
LIMIT: Final = 1 << 18
_FULL_NAMES_SIZE: Final = 32 << 20
"""Bytes that full names of one stream may take, about."""
TOO_MANY: Final = "(too many names)"
_MOST_BITS: Final = 18  # of a hash, by which a table finds a name


class Names:
    """Fixed-size byte strings ↔ ids.  Id 0 is the empty name."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._texts: list[str] = [""]
        self._ids: dict[str, int] = {"": 0}
        self._overflow: int | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, number: int) -> str:
        """Returns the name with this id, clean."""
        return self._texts[number]

    def find(self, text: str) -> int | None:
        """Returns the id of a name; None if it never occurred."""
        return self._ids.get(text)

    def texts(self) -> list[str]:
        """Returns all names, indexed by id; a copy."""
        return list(self._texts)

    def add(self, text: str) -> int:
        """Returns the id of `text`, which must be clean."""
        number = self._ids.get(text)
        if number is None:
            if len(self._texts) >= self.limit and text != TOO_MANY:
                if self._overflow is None:
                    self._overflow = self.add(TOO_MANY)
                return self._overflow
            number = len(self._texts)
            self._texts.append(text)
            self._ids[text] = number
        return number


class FullNames:
    """The names in one stream's records, by which Names has them: full ones."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._full: dict[str, str] = {}  # by the short form, both clean
        self._size = 0
        # By width in bytes.
        self._seen: dict[int, _Seen] = {}

    def learn(self, frame: Mapping[str, Any]) -> None:
        """Adds a NAMES frame, for the records that follow.  Raises StreamError.

        Full names beyond what is kept are ignored: rows have the short ones then.
        """
        found = frame.get("names")
        if not isinstance(found, dict):
            raise StreamError("malformed names in the stream")
        for short, full in found.items():
            if not isinstance(full, str) or max(len(short), len(full)) > LONGEST:
                raise StreamError("malformed names in the stream")
            self._size += 4 * (len(short) + len(full)) + 200
            if self._size <= _FULL_NAMES_SIZE:
                self._full[clean(short)] = clean(full)
        # A name seen before may be the short form of one that is known only now.
        self._seen.clear()

    def intern(self, raw: Array) -> Array:
        """Returns the ids, uint32 (n,), of `raw` (n,), whose dtype is S with 4·k bytes.

        A name ends at its first NUL.
        """
        raw = np.ascontiguousarray(raw)
        width = raw.dtype.itemsize
        seen = self._seen.get(width)
        if seen is None:
            seen = self._seen[width] = _Seen(width)
        ids, missed = seen.lookup(raw)
        if missed.size:
            fresh = {}
            for value in set(raw[missed].tolist()):
                name = clean(value.split(b"\0", 1)[0])
                fresh[value] = self._names.add(self._full.get(name, name))
            seen.learn(fresh, self._names.limit)
            ids[missed] = [fresh[value] for value in raw[missed].tolist()]
        return ids


class _Seen:
    """The byte strings of one width that have an id, sorted by hash."""

    def __init__(self, width: int) -> None:
        self._dtype = f"S{width}"
        self._words = width // 4
        self._hash = Hash(self._words)
        self._raw = np.zeros(0, self._dtype)
        self._hashes = np.zeros(0, np.uint64)
        self._ids = np.zeros(0, np.uint32)
        # Index of a name by the first bits of its hash: faster than a search.
        self._slots: Array | None = None
        self._shift = np.uint64(0)
        self.learn({b"": 0}, 1)

    def _hash_of(self, raw: Array) -> Array:
        words = raw.view(np.uint32).reshape(len(raw), self._words)
        return self._hash.quick([words[:, at] for at in range(self._words)])

    def lookup(self, raw: Array) -> tuple[Array, Array]:
        """Returns ids (0 if unknown), and the indices of unknown strings."""
        hashes = self._hash_of(raw)
        if self._slots is None:
            at = np.searchsorted(self._hashes, hashes)
            at[at == len(self._hashes)] = 0
        else:
            at = self._slots[hashes >> self._shift]
        # Verify equality: a hash collision must not yield a wrong name.
        words = (len(raw), self._words // 2 or 1)
        kind = np.uint64 if self._words % 2 == 0 else np.uint32
        same = raw.view(kind).reshape(words) == self._raw.view(kind).reshape(-1, words[1])[at]
        known = _all(same)
        ids = self._ids[at]
        if known.all():
            return ids, np.zeros(0, np.intp)
        missed = np.flatnonzero(~known)
        ids[missed] = 0
        return ids, missed

    def learn(self, fresh: dict[bytes, int], limit: int) -> None:
        """Adds strings and their ids, as long as there are fewer than 2·`limit`."""
        if len(self._raw) >= 2 * limit:
            return
        raw = np.array(list(fresh), self._dtype)
        hashes = np.concatenate([self._hashes, self._hash_of(raw)])
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._raw = np.concatenate([self._raw, raw])[order]
        self._ids = np.concatenate([self._ids, np.fromiter(fresh.values(), np.uint32)])[order]
        self._make_slots()

    def _make_slots(self) -> None:
        """Makes the table of the names by the first bits of their hashes, if they differ there."""
        self._slots = None
        for bits in range(len(self._hashes).bit_length() + 3, _MOST_BITS + 1):
            self._shift = np.uint64(64 - bits)
            firsts = self._hashes >> self._shift
            if (firsts[1:] != firsts[:-1]).all():
                self._slots = np.zeros(1 << bits, np.uint32)
                self._slots[firsts] = np.arange(len(firsts))
                return


def _all(same: Array) -> Array:
    """Returns whether all are true in each row of `same`, bool (n, k): much faster for small k."""
    k = same.shape[1]
    rows: Array
    if k in (2, 4, 8):
        rows = np.equal(same.view(f"u{k}")[:, 0], int.from_bytes(b"\1" * k, "little"))
    else:
        rows = np.all(same, axis=1)
    return rows
