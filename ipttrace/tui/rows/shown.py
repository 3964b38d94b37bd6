# SPDX-License-Identifier: GPL-2.0-only
"""The rows that are shown: the filters over the store, their selection, the search.

A new filter is tried on the rows already held a portion at a time, so that keys are
handled in between; until that is done the previous selection stays in force.  Must
not touch widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ipttrace.trace import query
from ipttrace.trace.arrays import Array
from ipttrace.trace.fragments import index_of
from ipttrace.trace.selection import AllRows, Mask, MatchingRows, Selection
from ipttrace.trace.store import Store
from ipttrace.tui.rows.filters import Filters
from ipttrace.tui.rows.playback import Clock, PlayedRows

PORTION: Final = 1 << 16  # rows tried in one go

Context = Callable[[], query.Context]


class ShownRows:
    """The filters over one store and the selection that they make."""

    def __init__(self, store: Store, context: Context) -> None:
        """`context`: returns what queries depend on besides the rows, as of now."""
        self._store = store
        self._context = context
        self.filters = Filters()
        self.selection: Selection = AllRows(store)
        self._next: MatchingRows | None = None  # the new filter's, while it is being tried
        self._filter: Mask | None = None  # the filter in force; None: all rows
        self._joined = 0  # version of the store's flows that it has been tried with
        self._changes = False  # rows begin and cease to match later
        self._reach: Sequence[tuple[int, int, int]] = ()  # what it has been tried with
        self._again = False  # the filter in force is being tried again
        self.revision = 0  # increases when rows that were tried match differently
        self.clock: Clock | None = None  # while a recording is played
        self._due = 0
        self.search: Mask | None = None  # the rows searched for
        self.search_text = ""  # as the user typed it

    def check(self, text: str) -> tuple[str, int] | None:
        """Returns what is wrong with a query and at which character; None if it is valid."""
        try:
            query.compile(text)
        except query.QueryError as error:
            return error.message, error.position
        return None

    def narrow(self, text: str, words: str) -> bool:
        """Adds `text` to the filter.  Raises QueryError.  False: that changes nothing.

        `words`: what it adds, in words.
        """
        return self._put_filter(self.filters.narrowed(text), words, add=True)

    def filter_by(self, text: str, words: str = "") -> bool:
        """Makes `text` the filter.  Raises QueryError.  False: it is already.

        `words`: the filter in words; "": the text itself.
        """
        return self._put_filter(text, words or text, add=False)

    def _put_filter(self, text: str, words: str, *, add: bool) -> bool:
        compiled = query.compile(text)
        if not self.filters.push(text, words, add=add):
            return False
        self._select(compiled)
        return True

    def back(self) -> bool:
        """Goes back to the filter before.  False: there is none."""
        if not self.filters.back():
            return False
        self._select(query.compile(self.filters.text))
        return True

    def clear(self) -> bool:
        """Shows all rows.  False: they are shown already."""
        if not self.filters.clear():
            return False
        self._select(query.compile(""))
        return True

    def _select(self, compiled: query.Query) -> None:
        self._next = None
        self._filter = self._mask(compiled) if self.filters.text else None
        self._changes = compiled.changes
        if self._filter is None:
            self._put(AllRows(self._store))
            return
        self._try(again=False)

    def _try(self, *, again: bool) -> None:
        """Begins to try the filter on all rows that are held."""
        if self._filter is not None:
            self._again = again
            self._joined = self._store.aliases.version
            self._reach = self._reach_versions()
            self._next = MatchingRows(self._store, self._filter)
            self._due = max(1, self._next.behind)

    def _mask(self, compiled: query.Query) -> Mask:
        return lambda part: compiled.mask(part, self._context())

    @property
    def progress(self) -> float | None:
        """How much of the held rows the new filter has been tried on, 0 to 1; None: all."""
        if self._next is None:
            return None
        return max(0.0, 1 - self._next.behind / self._due)

    def filter_portion(self) -> bool:
        """Tries the new filter on one more portion.  True: its selection is now in force."""
        if self._next is None or self._next.pull(PORTION):
            return False
        # The same rows keep their positions, and the list does not move.
        if not self._again or self._differs(self._next):
            self.revision += self._again
            self._put(self._next)
        self._next = None
        return True

    def _differs(self, selection: MatchingRows) -> bool:
        """Whether the selection in force has other rows; it is brought up to date."""
        held = self._all_shown
        while held.pull(PORTION):
            pass
        return not np.array_equal(
            held.seqs(held.first, held.end), selection.seqs(selection.first, selection.end)
        )

    @property
    def _all_shown(self) -> Selection:
        """The selection in force, with the rows later than the clock."""
        return self.selection.all if isinstance(self.selection, PlayedRows) else self.selection

    def _reach_versions(self) -> Sequence[tuple[int, int, int]]:
        """What changes if a next hop answers or does not, or a fragment proves faulty."""
        held = self._store.neighbours.items()
        fragments = index_of(self._store)
        fragments.update()
        versions = [(host, id(one), one.reach_version) for host, one in held]
        return [*versions, (-1, id(fragments), fragments.version)]

    def _put(self, selection: Selection) -> None:
        if self.clock is None:
            self.selection = selection
        else:
            self.selection = PlayedRows(selection, self._store, self.clock)

    def play(self, clock: Clock | None) -> None:
        """Shows no rows later than the clock; None: all."""
        self.clock = clock
        self._put(self._all_shown)

    def pull(self, *, again: bool = True) -> bool:
        """Adds new rows of the store to the selection.  True: the filter is tried again on all.

        Rows are of another flow than they seemed to be when later ones show what NAT does,
        a neighbour may cease to answer, and a fragment prove faulty.  `again`: whether rows
        may appear or disappear.
        """
        self.selection.pull(PORTION)
        if self._filter is None or self._next is not None or not again:
            return False
        if self._changes and self._reach != self._reach_versions():
            self._try(again=True)
            return True
        joined = self._store.aliases.since(self._joined)
        self._joined = self._store.aliases.version
        if joined is not None and (not len(joined) or not self._is_outdated(joined)):
            return False
        self._try(again=True)
        return True

    def _is_outdated(self, joined: Array) -> bool:
        """Whether rows of these flows (n,) match the filter that are not shown, or the reverse."""
        assert self._filter is not None
        shown = self._all_shown
        seqs = shown.seqs(shown.first, shown.end)
        for part in self._store.parts(None, self._store.end - shown.behind):
            rows = np.flatnonzero(np.isin(part.columns["flow"], joined))
            if rows.size:
                is_shown = np.isin(rows + part.first, seqs, assume_unique=True)
                if (self._filter(part)[rows] != is_shown).any():
                    return True
        return False

    def mask(self, text: str) -> Mask:
        """Returns the test of rows that the query `text` is.  Raises QueryError."""
        return self._mask(query.compile(text))

    def find(self, mask: Mask, position: int, step: int) -> int | None:
        """The position of the next row after `position` that matches; None: none.

        `step`: 1 searches forwards, -1 backwards.
        """
        selection = self.selection
        at = position + step
        while selection.first <= at < selection.end:
            a, b = (at, at + PORTION) if step > 0 else (at + 1 - PORTION, at + 1)
            a, b = max(a, selection.first), min(b, selection.end)
            seqs = selection.seqs(a, b)
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
