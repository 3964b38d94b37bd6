# SPDX-License-Identifier: GPL-2.0-only
"""TABLES frames, as an agent on an invented router writes them."""

from __future__ import annotations

from typing import Any

from ipttrace.trace.tables import KernelTables
from tests.data.neighbours import CLIENT, ROUTER, SECOND, T0

__all__ = [
    "CLIENT",
    "CONNTRACK",
    "IPV4",
    "IPV6",
    "ROUTER",
    "SECOND",
    "T0",
    "look",
    "router",
    "table",
]

IPV4 = {
    "high_thresh": 4_194_304,
    "low_thresh": 3_145_728,
    "time": 30,
    "max_dist": 64,
    "queues": 2,
    "memory": 4_608,
    "ReasmReqds": 1_234,
    "ReasmOKs": 610,
    "ReasmFails": 3,
    "ReasmTimeout": 3,
    "ReasmOverlaps": 0,
}
IPV6 = {
    "high_thresh": 4_194_304,
    "low_thresh": 3_145_728,
    "time": 60,
    "queues": 0,
    "memory": 0,
    "ReasmReqds": 0,
    "ReasmOKs": 0,
    "ReasmFails": 0,
    "ReasmTimeout": 0,
}
CONNTRACK = {
    "entries": 1_204,
    "max": 262_144,
    "buckets": 262_144,
    "expect_max": 4_096,
    "found": 17,
    "invalid": 12,
    "insert": 0,
    "insert_failed": 0,
    "drop": 0,
    "early_drop": 0,
    "error": 2,
    "search_restart": 5,
    "clash_resolve": 0,
    "chaintoolong": 0,
}
_VALUES = {"ipv4": IPV4, "ipv6": IPV6, "conntrack": CONNTRACK}


def table(
    name: str = "ipv4", second: float = 0, netns: int = ROUTER, **values: int
) -> dict[str, Any]:
    """A table that has changed within the last second, except in second 0."""
    frame: dict[str, Any] = {"mono": T0 + int(second * SECOND), "netns": netns, "name": "router"}
    frame |= {"table": name, "values": {**_VALUES[name], **values}}
    return frame | ({"since": frame["mono"] - SECOND} if second else {})


def look(second: float) -> dict[str, Any]:
    """The end of a look."""
    return {"mono": T0 + int(second * SECOND)}


def router(**changed: dict[str, int]) -> KernelTables:
    """A minute of a router; `changed`: values that changed in the last second, by table."""
    held = KernelTables()
    for name in _VALUES:
        held.feed(table(name))
    held.feed(look(59))
    for name, values in changed.items():
        held.feed(table(name, 60, **values))
    held.feed(look(60))
    return held
