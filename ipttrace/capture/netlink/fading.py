# SPDX-License-Identifier: GPL-2.0-only
"""A map that forgets what was written long ago: for packets, whose end is not reported.

By age rather than by number alone: otherwise memory grows for hours on a quiet host.
Must not do I/O or read a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar, overload

# How long what was written is remembered, ns: longer than a packet waits in a queue.
SPAN: Final = 30_000_000_000
MOST: Final = 1 << 17  # keys

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")


class FadingMap(Generic[_Value]):
    """int → value; remembers for `span` to 2 · `span` ns, and at most `most` keys."""

    def __init__(self, most: int = MOST, span: int = SPAN) -> None:
        self._most = most
        self._span = span
        self._new: dict[int, _Value] = {}
        self._old: dict[int, _Value] = {}
        self._since: int | None = None  # of the first key in `_new`, about

    def fade(self, now: int) -> None:
        """Forgets what is older than the span at `now`, ns of any clock that goes on."""
        if self._since is None:
            self._since = now
        elif now - self._since >= self._span:
            # After a long pause, all of it.
            self._old = self._new if now - self._since < 2 * self._span else {}
            self._new, self._since = {}, now

    @overload
    def get(self, key: int) -> _Value | None: ...

    @overload
    def get(self, key: int, default: _Default) -> _Value | _Default: ...

    def get(self, key: int, default: Any = None) -> Any:
        return self._new[key] if key in self._new else self._old.get(key, default)

    def __getitem__(self, key: int) -> _Value:
        return self._new[key] if key in self._new else self._old[key]

    def __contains__(self, key: int) -> bool:
        return key in self._new or key in self._old

    def __setitem__(self, key: int, value: _Value) -> None:
        if len(self._new) >= self._most // 2 and key not in self._new:
            self._old, self._new = self._new, {}
        self._new[key] = value

    def pop(self, key: int) -> _Value | None:
        """Removes the key; returns its value, None if there is none."""
        old = self._old.pop(key, None)
        new = self._new.pop(key, None)
        return old if new is None else new

    def __iter__(self) -> Iterator[int]:
        yield from self._new
        yield from (key for key in self._old if key not in self._new)

    def __len__(self) -> int:
        return len(self._new) + sum(key not in self._new for key in self._old)

    def __bool__(self) -> bool:
        return bool(self._new or self._old)
