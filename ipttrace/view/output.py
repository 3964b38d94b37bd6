# SPDX-License-Identifier: GPL-2.0-only
"""The two protocols of this package: a `View` makes lines, an `Output` makes bytes.

Must not do I/O or import a format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ipttrace.trace.row import Row

if TYPE_CHECKING:
    from ipttrace.trace.arrays import Array
    from ipttrace.trace.store import Picked, Store


class View(Protocol):
    """Rows as lines.  All methods return complete lines with their line ends."""

    def header(self) -> str:
        """Returns what precedes the first row; empty if the format has no header."""

    def lines(self, rows: Iterable[Row]) -> str:
        """Returns one line per row, in the given order."""

    def picked(self, rows: Picked) -> str:
        """Returns the same lines as `lines`, for rows of a store, faster."""


class Output(Protocol):
    """Rows of a store as the bytes of a file, in portions.

    Unlike a `View`, it reads the store itself and can therefore write the bytes of
    the packets, which rows do not contain.  It may hold rows back until later ones
    have come.
    """

    def begin(self, about: Mapping[str, object]) -> bytes:
        """Returns what precedes all rows.  `about`: the stream's HELLO, untrusted."""

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        """Returns the bytes of rows `seqs` and how many of them the store still held."""

    def pause(self) -> bytes:
        """Returns everything held back: no row has come for a while."""

    def end(self) -> bytes:
        """Returns what follows the last row."""


class LineOutput:
    """A `View` as an `Output`: UTF-8, holds nothing back."""

    def __init__(self, view: View) -> None:
        self._view = view

    def begin(self, about: Mapping[str, object]) -> bytes:
        return _encoded(self._view.header())

    def rows(self, store: Store, seqs: Sequence[int] | Array) -> tuple[bytes, int]:
        lines, count = [], 0
        for some in store.picked(seqs):
            lines.append(self._view.picked(some))
            count += len(some)
        return _encoded("".join(lines)), count

    def pause(self) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
