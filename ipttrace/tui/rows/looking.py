# SPDX-License-Identifier: GPL-2.0-only
"""What of the rows is looked at: the filters, the lens that they make, the search.

A new filter is tried on the old rows a portion at a time, so that keys have
their turn between two; until it is through, the list looks through the old
lens.  Must not touch widgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.trace import query
from ipttrace.trace.lens import Everything, Lens, Matching
from ipttrace.trace.store import Part, Store
from ipttrace.tui.rows.filters import Filters
from ipttrace.tui.rows.playing import Clock, Played

PORTION: Final = 1 << 16

Context = Callable[[], query.Context]


class Looking:
    """The view's filters over one store."""

    def __init__(self, store: Store, context: Context) -> None:
        """`context`: what queries need to know beside the rows, as it is now."""
        self._store = store
        self._context = context
        self.filters = Filters()
        self.lens: Lens = Everything(store)
        self._next: Matching | None = None
        self._clock: Clock | None = None
        self._due = 0
        self.sought = ""  # the search, a query; "" is none
        self.words = ""  # as a person wrote it

    def check(self, text: str) -> tuple[str, int] | None:
        """What is wrong with a query and where; None when nothing is."""
        try:
            query.compile(text)
        except query.QueryError as error:
            return error.message, error.position
        return None

    def narrow(self, text: str, name: str) -> bool:
        """Only rows that `text` takes, too.  Raises QueryError.  False: nothing new."""
        return self.write(self.filters.narrowed(text), name)

    def write(self, text: str, name: str = "typed") -> bool:
        """Only the rows that `text` takes.  Raises QueryError.  False: nothing new."""
        query.compile(text)
        if not self.filters.push(text, name):
            return False
        self._turn()
        return True

    def back(self) -> bool:
        """One filter less.  False when there is none."""
        if not self.filters.back():
            return False
        self._turn()
        return True

    def _turn(self) -> None:
        text = self.filters.text
        self._next = None
        if not text:
            self._put(Everything(self._store))
            return
        self._next = Matching(self._store, self._mask(text))
        self._due = max(1, self._next.behind)

    def _mask(self, text: str) -> Callable[[Part], np.ndarray]:
        asked, context = query.compile(text), self._context
        return lambda part: asked.mask(part, context())

    @property
    def progress(self) -> float | None:
        """How far the old rows have been looked at, 0 to 1; None when they are."""
        if self._next is None:
            return None
        return max(0.0, 1 - self._next.behind / self._due)

    def work(self) -> bool:
        """Look at one more portion of the old rows.  True: there is a new lens."""
        if self._next is None or self._next.pull(PORTION):
            return False
        self._put(self._next)
        self._next = None
        return True

    def _put(self, lens: Lens) -> None:
        self.lens = lens if self._clock is None else Played(lens, self._store, self._clock)

    def play(self, clock: Clock | None) -> None:
        """Show only what is not later than the clock; None: all."""
        self._clock = clock
        self._put(self.lens.under if isinstance(self.lens, Played) else self.lens)

    def pull(self) -> None:
        """Look at what has come."""
        self.lens.pull(PORTION)

    def find(self, text: str, place: int, step: int) -> int | None:
        """The next place from `place` on that `text` matches; `step` 1 goes on, -1 back.

        Raises QueryError.
        """
        mask, lens = self._mask(text), self.lens
        at = place + step
        while lens.first <= at < lens.end:
            a, b = (at, at + PORTION) if step > 0 else (at + 1 - PORTION, at + 1)
            a, b = max(a, lens.first), min(b, lens.end)
            seqs = lens.seqs(a, b)
            if not len(seqs):
                return None
            hits = [
                np.flatnonzero(mask(part)) + part.first
                for part in self._store.parts(int(seqs[0]), int(seqs[-1]) + 1)
            ]
            found = np.flatnonzero(np.isin(seqs, np.concatenate(hits), assume_unique=True))
            if found.size:
                return a + int(found[0 if step > 0 else -1])
            at = b if step > 0 else a - 1
        return None
