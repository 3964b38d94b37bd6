# SPDX-License-Identifier: GPL-2.0-only
"""Rule texts, each stored once for all generations that share it.  Must not do I/O."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ipttrace.trace.rules.frames import Chain

# What Python needs beside a text, for an element of a tuple, and for a chain, in bytes.
_TEXT: Final = 64
_ELEMENT: Final = 8
_CHAIN: Final = 300
_UNKNOWN: Final = 64  # for a number in `Chain.unknown`
_HANDLE: Final = 40  # for one in `Chain.handles`


class Texts:
    """Texts with the number of their uses.  `size`: bytes, estimated."""

    def __init__(self) -> None:
        self.size = 0
        self._same: dict[str, str] = {}
        self._uses: dict[str, int] = {}

    def keep(self, chains: dict[str, Chain]) -> dict[str, Chain]:
        """Returns equal chains made of the stored texts."""
        self.size += _size(chains)
        return {
            self._one(name): replace(chain, rules=tuple(map(self._one, chain.rules)))
            for name, chain in chains.items()
        }

    def drop(self, chains: dict[str, Chain]) -> None:
        """Reverts `keep`; texts without another use go."""
        self.size -= _size(chains)
        for name, chain in chains.items():
            for text in (name, *chain.rules):
                self.size -= _ELEMENT
                self._uses[text] -= 1
                if not self._uses[text]:
                    del self._uses[text], self._same[text]
                    self.size -= size_of(text)

    def _one(self, text: str) -> str:
        self.size += _ELEMENT
        same = self._same.setdefault(text, text)
        uses = self._uses.get(text, 0)
        if not uses:
            self.size += size_of(text)
        self._uses[text] = uses + 1
        return same


def size_of(text: str) -> int:
    """Returns the bytes that a stored text takes."""
    return _TEXT + (len(text) if text.isascii() else 4 * len(text))


def _size(chains: dict[str, Chain]) -> int:
    return sum(
        _CHAIN + _UNKNOWN * len(chain.unknown) + _HANDLE * len(chain.handles)
        for chain in chains.values()
    )
