# SPDX-License-Identifier: GPL-2.0-only
"""What is going on, in plain facts: what the bars and the empty screen show.

Everything here came over a stream, so every value may be of the wrong type,
absent or hostile.  Pure; must not import textual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipttrace.text import clean

# In the order in which a trace goes through them.
BOOTING: Final = "booting"
ARMED: Final = "armed"
DISARMED: Final = "disarmed"
REPLAYING: Final = "replaying"
STOPPING: Final = "stopping"
ENDED: Final = "ended"
ERROR: Final = "error"
# Of several hosts, the state that a person must know of comes first.
URGENCY: Final = (ERROR, STOPPING, BOOTING, DISARMED, ARMED, REPLAYING, ENDED)


@dataclass(frozen=True, slots=True)
class Situation:
    """One moment of a trace."""

    state: str
    reason: str  # one line: why it ended or broke; "" otherwise
    live: bool
    filter: str  # "" is all packets
    engine: str
    host: str
    kernel: str
    rows: int
    rate: float | None  # rows/s; None where it says nothing
    lost: int
    missed: int
    filtered: str = ""  # where the filter runs, where that is told


def text_of(value: object, default: str = "") -> str:
    """A value that should be text, safe for one line of a terminal."""
    return clean(value) if isinstance(value, str) and value else default


def netns_names(hello: Mapping[str, Any]) -> dict[int, str]:
    """Names of network namespaces by inode."""
    names = hello.get("netns")
    if not isinstance(names, dict):
        return {}
    return {
        int(inode): text_of(name)
        for inode, name in names.items()
        if str(inode).isascii() and str(inode).isdigit() and len(str(inode)) <= 20
    }


def state_of(
    hello: Mapping[str, Any],
    books: Mapping[str, Any],
    *,
    live: bool,
    over: bool,
    error: str | None,
    stopping: bool,
) -> str:
    """The one word for it."""
    if error is not None:
        return ERROR
    if over:
        return ENDED
    if stopping:
        return STOPPING
    if not hello:
        return BOOTING
    if not live:
        return REPLAYING
    state = text_of(books.get("state"), ARMED)
    return state if state in (ARMED, DISARMED, BOOTING) else ARMED
