# SPDX-License-Identifier: GPL-2.0-only
"""TABLES frames, checked: JSON in, plain values out.

A frame may come from a forged file, so every value is checked; its form is described in
`ipttrace.trace.tables`.  All functions raise StreamError, one line, if a value is
malformed.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final, Literal, NoReturn

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean

Table = Literal["ipv4", "ipv6", "conntrack"]
Values = dict[str, int]

IPV4: Final[Table] = "ipv4"
IPV6: Final[Table] = "ipv6"
CONNTRACK: Final[Table] = "conntrack"
TABLES: Final[tuple[Table, ...]] = (IPV4, IPV6, CONNTRACK)

_REASSEMBLY: Final = ("ReasmReqds", "ReasmOKs", "ReasmFails", "ReasmTimeout")
# Values that only grow, by table, in the order in which they are shown.
COUNTERS: Final[dict[Table, tuple[str, ...]]] = {
    IPV4: (*_REASSEMBLY, "ReasmOverlaps"),
    IPV6: _REASSEMBLY,
    CONNTRACK: (
        "drop",
        "early_drop",
        "insert_failed",
        "invalid",
        "search_restart",
        "clash_resolve",
        "chaintoolong",
        "error",
        "insert",
        "found",
    ),
}

_LIMIT: Final = 1 << 64
_NS_LIMIT: Final = 1 << 63
_MOST_VALUES: Final = 64
_MOST_GONE: Final = 8192
_LONGEST: Final = 40  # characters of a value's name


def bad(what: str) -> NoReturn:
    """Raises StreamError: `what` is malformed."""
    raise StreamError(f"malformed kernel tables in the stream: {what}")


def natural(value: object, what: str) -> int:
    """Returns an integer from 0 to 2**64 - 1."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LIMIT:
        return value
    return bad(what)


def moment(value: object, what: str) -> int:
    """Returns a time in ns."""
    found = natural(value, what)
    return found if found < _NS_LIMIT else bad(what)


def name(value: object) -> str:
    """Returns the name of a namespace, clean."""
    return clean(value, 256) if isinstance(value, str) else bad("a name")


def table(value: object) -> Table:
    """Returns which table it is."""
    for one in TABLES:
        if value == one:
            return one
    return bad("a table's name")


def values(value: object) -> Values:
    """Returns the values by their names; empty for null."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_VALUES:
        return bad("the values")
    return {clean(str(key), _LONGEST): natural(one, "a value") for key, one in value.items()}


def gone(value: object) -> list[int]:
    """Returns the inodes of namespaces that no longer exist."""
    if not isinstance(value, list) or len(value) > _MOST_GONE:
        return bad("namespaces that are gone")
    return [natural(one, "a namespace that is gone") for one in value]
