# SPDX-License-Identifier: GPL-2.0-only
"""What differs between two sets of rules, as lines and as an object.  Pure."""

from __future__ import annotations

from typing import Any, Final

from ipttrace.trace.row import Row
from ipttrace.whatif.compare.fates import Compared, Difference

SAME: Final = 0
DIFFERENT: Final = 3


def status(found: Compared) -> int:
    """Returns the exit status: 0 the same, 3 different."""
    return DIFFERENT if found.differences else SAME


def lines(found: Compared, notes: list[str]) -> list[str]:
    """Returns the result's lines."""
    listed: list[str] = []
    for one in found.differences:
        listed.append(f"{_packets(one.kind.count)}: {packet(one.kind.row)} (row {_number(one)})")
        listed += [f"  old: {one.old.text}", f"  new: {one.new.text}"]
    differ = sum(one.kind.count for one in found.differences)
    listed.append(
        f"{len(found.differences)} of {found.kinds} distinct packets differ:"
        f" {differ} of {_packets(found.packets)}"
    )
    if found.unsent:
        listed.append(f"note: {_packets(found.unsent)} could not be sent: {found.reason}")
    if found.named:
        listed.append(
            f"note: {_packets(found.named)} met rules whose answer may differ: rates, random"
            " numbers and the like (ipttrace whatif names them)"
        )
    return listed + [f"note: {text}" for text in notes]


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"


def _number(one: Difference) -> int:
    return one.kind.row.index + 1


def packet(row: Row) -> str:
    """Returns a row's packet in the words of PACKET."""
    ends = f"{_end(row.src, row.sport)} > {_end(row.dst, row.dport)}"
    more = [f"in {row.in_}" if row.in_ else "out"]
    more += [text for text in (row.flags and row.flags.lower(), row.icmp) if text]
    return " ".join([row.proto.lower() or "?", ends, *more])


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def as_json(found: Compared, notes: list[str]) -> dict[str, Any]:
    """Returns the result as an object."""
    return {
        "differences": [
            {
                "packet": packet(one.kind.row),
                "row": _number(one),
                "count": one.kind.count,
                "old": one.old.text,
                "new": one.new.text,
            }
            for one in found.differences
        ],
        "distinct": found.kinds,
        "packets": found.packets,
        "unsent": found.unsent,
        "may_differ": found.named,
        "notes": notes,
    }
