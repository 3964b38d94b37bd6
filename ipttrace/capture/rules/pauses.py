# SPDX-License-Identifier: GPL-2.0-only
"""When tables may be read again: who changes them all the time waits longer and longer.

Any user may do that, in a namespace of his own.  Must not read rules or the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

FIRST: Final = 0.05  # s
LONGEST: Final = 2.0

Group = tuple[int, int]
"""Inode of a namespace, and a family."""


@dataclass(frozen=True, slots=True)
class _Pause:
    until: float
    length: float


class Pauses:
    """A pause after each read of a group; twice as long if it came soon after the last one."""

    def __init__(self) -> None:
        self._pauses: dict[Group, _Pause] = {}

    def begin(self, group: Group, now: float) -> float:
        """Begins a pause; returns how long it is, s."""
        last = self._pauses.get(group)
        length = FIRST
        if last is not None and now < last.until + last.length:
            length = min(2 * last.length, LONGEST)
        self._pauses[group] = _Pause(now + length, length)
        return length

    def forget(self, group: Group) -> None:
        """The group is gone."""
        self._pauses.pop(group, None)

    def end(self, groups: Iterable[Group]) -> float:
        """Returns when the first of the groups, one at least, may be read."""
        return min(self._until(group) for group in groups)

    def calmest(self, groups: Iterable[Group], now: float) -> Group | None:
        """Returns the group to be read now: of the shortest pause, the first; None if none."""

        def length(group: Group) -> float:
            last = self._pauses.get(group)
            return 0.0 if last is None else last.length

        return min((one for one in groups if self._until(one) <= now), key=length, default=None)

    def _until(self, group: Group) -> float:
        last = self._pauses.get(group)
        return 0.0 if last is None else last.until
