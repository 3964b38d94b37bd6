# SPDX-License-Identifier: GPL-2.0-only
"""Which tables may have been other ones, unseen, between two readings of them.

Each program that replaces a table takes iptables' lock, replaces one table at most, and releases
it: a session.  If as many changes were seen as there were sessions, nothing was missed.  Whether
a session replaced a table is often known only by what is read later, so that a reading's answer
may change until it is settled.  Must not do I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from typing import Final, TypeVar

from ipttrace.capture.netlink.legacy.lock import Moment

_NONE: Final = -(1 << 62)
_MOST_GAPS: Final = 64

Key = TypeVar("Key")


class Sessions:
    """Sessions and changes since the lock was last in doubt.

    Of the readings i < j, at most `opened(j) - closed(i)` sessions can have replaced a table
    between them, which are those that were open in between.  Without the changes that were seen
    in that time, the rest is what may have been missed; of all such pairs around two
    neighbouring readings the least counts.
    """

    def __init__(self) -> None:
        self._changes = 0  # seen until the newest reading
        self._closed = _NONE  # the most of `closed - changes` of any reading
        self._doubts = -1
        self._gaps: deque[Gap] = deque(maxlen=_MOST_GAPS)  # that later readings may narrow

    def add(self, before: Moment, after: Moment, changes: int) -> Gap:
        """Returns the gap between the reading before and this one, which saw `changes`.

        `before`, `after`: the lock just before and just after the reading.
        """
        certain = self._doubts == after.doubts
        self._changes += changes
        gap = Gap(self._closed, after.opened - self._changes, certain)
        if certain:
            for one in self._gaps:
                one.narrow(gap)
        else:
            self._gaps.clear()
        self._gaps.append(gap)
        if self._doubts != before.doubts or not certain:
            self._closed = _NONE
        self._closed = max(self._closed, before.opened - before.open - self._changes)
        self._doubts = before.doubts
        return gap


class Gap:
    """The time between two readings, with all that later readings add."""

    def __init__(self, closed: int, opened: int, certain: bool) -> None:
        self._closed = closed
        self.opened = opened  # `opened - changes` of the later reading
        self._least = opened
        self.certain = certain

    def narrow(self, later: Gap) -> None:
        """Adds what a later gap shows; the lock was in no doubt until then."""
        self._least = min(self._least, later.opened)

    @property
    def missed(self) -> int | None:
        """At most so many replacements were not seen; negative if some took no lock.

        None if it is unknown.
        """
        return self._least - self._closed if self.certain else None

    def hidden(self, keys: AbstractSet[Key], changed: AbstractSet[Key]) -> frozenset[Key]:
        """Those of the tables that may have been other ones for a while.

        `changed`: which are seen to differ: from A by B to C takes one replacement more than
        is seen, from A by B to A two.
        """
        missed = self.missed
        return frozenset(
            key for key in keys if missed is None or missed > (0 if key in changed else 1)
        )
