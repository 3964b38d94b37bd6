# SPDX-License-Identifier: GPL-2.0-only
"""Complete JSON frames of a stream, with overrides.

Overrides may be what no agent writes: readers are tested with malformed frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from ipttrace.stream.messages import Books, End, Hello, Message

WALL: Final = 1_700_000_000_000_000_000

_HELLO: Final[Hello] = {
    "engine": "kernel",
    "version": "0.1.0",
    "kernel": "6.1.0-40-amd64",
    "arch": "x86_64",
    "host": "lab",
    "cpus": 2,
    "expr": "",
    "netns": {"4026532456": "router"},
    "only_netns": None,
    "clock": {"mono": 0, "wall": WALL},
}
_BOOKS: Final[Books] = {
    "engine": "kernel",
    "state": "armed",
    "calls": 0,
    "refused": 0,
    "matched": 0,
    "followed": 0,
    "flipped": 0,
    "silenced": 0,
    "due": [0, 0, 0],
    "delivered": [0, 0, 0],
    "lost": [0, 0, 0],
    "missed": 0,
    "depth": 1,
}


def hello(**changes: Any) -> Hello:
    """A HELLO of a lab router, without format and layout."""
    return cast(Hello, {**_HELLO, **changes})


def books(**changes: Any) -> Books:
    """BOOKS of an armed engine before the first packet."""
    return cast(Books, {**_BOOKS, **changes})


def end(reason: str = "done", **changes: Any) -> End:
    """An END of a disarmed engine."""
    return cast(End, {**_BOOKS, "state": "disarmed", "reason": reason, **changes})


def message(frame: Mapping[str, Any]) -> Message:
    """A frame that was built as a reader gets it, for a writer."""
    return cast(Message, frame)
