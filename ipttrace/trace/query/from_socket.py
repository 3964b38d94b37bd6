# SPDX-License-Identifier: GPL-2.0-only
"""Query texts for the packets of a connection or of a port.  The text always compiles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ipttrace.trace.query.tree import quote

_ANY: Final = ("0.0.0.0", "::")

End = tuple[str, int]
"""An address and a port."""


def by_ends(protocol: str, ends: Iterable[tuple[End, End]]) -> str:
    """Rows between any of these pairs of ends, in both directions."""
    sides = [pair for one, other in ends for pair in ((one, other), (other, one))]
    each = [_sides(*pair) for pair in dict.fromkeys(sides)]
    return f"proto={quote(protocol)} and ({' or '.join(each)})"


def by_port(protocol: str, end: End) -> str:
    """Rows to a port of an address, or of any address."""
    address, port = end
    at = "" if address in _ANY else f" and dst={quote(address)}"
    return f"proto={quote(protocol)}{at} and dport={port}"


def _sides(source: End, destination: End) -> str:
    return (
        f"(src={quote(source[0])} and sport={source[1]}"
        f" and dst={quote(destination[0])} and dport={destination[1]})"
    )
