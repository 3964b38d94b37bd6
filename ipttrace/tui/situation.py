# SPDX-License-Identifier: GPL-2.0-only
"""The state of a trace at one moment: what the bars and the empty screen show.

All values come from streams, so each may be absent, of the wrong type or hostile.
Pure; must not import Textual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipttrace.text import clean

# States, in the order in which a trace passes through them.
BOOTING: Final = "booting"
ARMED: Final = "armed"
DISARMED: Final = "disarmed"
REPLAYING: Final = "replaying"
STOPPING: Final = "stopping"
ENDED: Final = "ended"
ERROR: Final = "error"
# If hosts differ, the first of these is shown.
URGENCY: Final = (ERROR, STOPPING, BOOTING, DISARMED, ARMED, REPLAYING, ENDED)


@dataclass(frozen=True, slots=True)
class Situation:
    """One moment of a trace, or of the traces of several hosts together."""

    state: str
    reason: str  # why it ended or broke, in one line; "" otherwise
    live: bool
    filter: str  # in the kernel; "": all packets
    engine: str
    host: str
    kernel: str
    rows: int
    rate: float | None  # rows/s; None if no more will come
    lost: int
    missed: int
    filtered: str = ""  # where the filter runs; "" if unknown


def text_of(value: object, default: str = "") -> str:
    """`value`, safe for one line of a terminal; `default` if it is not text or empty."""
    return clean(value) if isinstance(value, str) and value else default


def netns_names(hello: Mapping[str, Any]) -> dict[int, str]:
    """Names of network namespaces by inode, from a HELLO."""
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
    """The state of a trace, from its HELLO, its latest BOOKS and its feed."""
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
