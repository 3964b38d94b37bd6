# SPDX-License-Identifier: GPL-2.0-only
"""Accepted packets whose next hop has no link-layer address: "no ARP", "no ND".

As of now, not of when the packet came: an address is resolved, or given up, after the
packet has passed the tables.  `next_hop` judges a row and `Unresolved` the rows of a
part, so that a query matches exactly the rows that the screen marks.  Must not loop
over rows in Python: a destination is looked up once per part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from ipttrace.netfilter import ACCEPT, HOOKS, VERDICTS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.neighbours import Neighbours, Reach
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import Choice, Matcher
from ipttrace.trace.query.names import NameTable
from ipttrace.trace.row import Row
from ipttrace.trace.store import Part, address

PROTOCOLS: Final = ("ARP", "ND")

_LEAVES: Final = "POSTROUTING"
# The last tables before it that a packet passes: no DNAT follows.
_LAST_TABLE: Final = "filter"
_LAST_HOOKS: Final = ("FORWARD", "OUTPUT")


def next_hop(row: Row, neighbours: Mapping[int, Neighbours]) -> Reach | None:
    """The next hop of an accepted row if it has no link-layer address now; otherwise None.

    None where a later DNAT may change the destination.  `neighbours`: by host.
    """
    if row.verdict != VERDICTS[ACCEPT] or not row.out or not row.dst:
        return None
    if row.hook != _LEAVES and (row.table != _LAST_TABLE or row.hook not in _LAST_HOOKS):
        return None
    known = neighbours.get(row.host)
    reach = None if known is None else known.usable(row.netns, row.dst, row.out)
    return reach if reach is not None and reach.unresolved else None


class Unresolved(Choice):
    """ARP or ND for the rows for which `next_hop` finds one; unknown for all others."""

    skips_unknown = True
    changes = True

    def __init__(self) -> None:
        texts = ("", *PROTOCOLS)
        super().__init__(lambda part: np.zeros(len(part), np.uint8), texts, listed=PROTOCOLS)
        self._last_table = NameTable(lambda name: name == _LAST_TABLE)
        self._hash = Hash(8)

    def has_value(self, part: Part, context: Context) -> Array | None:
        found: Array = self._found(part, context) != 0
        return found

    def by_table(self, table: Array) -> Matcher:
        table = table.copy()
        table[0] = False  # "" is no value, whatever a regular expression matches

        def in_table(part: Part, context: Context) -> Array:
            found: Array = table[self._found(part, context)]
            return found

        return in_table

    def _found(self, part: Part, context: Context) -> Array:
        """Indices into `_texts`, uint8 (n,)."""
        found = np.zeros(len(part), np.uint8)
        failing = {
            host << 32 | netns
            for host, neighbours in context.neighbours.items()
            for netns in neighbours.unresolved()
        }
        if not failing:
            return found
        columns = part.columns
        places = columns["host"].astype(np.uint64) << np.uint64(32) | columns["netns"]
        rows = np.flatnonzero(
            self._may_leave(part, context)
            & np.isin(places, np.array(sorted(failing), np.uint64), kind="sort")
        )
        if not rows.size:
            return found
        words = [columns[name][rows].astype(np.uint32) for name in ("host", "netns", "out")]
        dst = np.ascontiguousarray(columns["dst"][rows]).view(np.uint32)
        hashes = self._hash.full([*words, *dst.T, columns["version"][rows].astype(np.uint32)])
        _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        texts = [self._text_of(part, context, row) for row in rows[first].tolist()]
        codes = np.array([self._texts.index(text) for text in texts], np.uint8)
        found[rows] = codes[which]
        return found

    def _may_leave(self, part: Part, context: Context) -> Array:
        """The rows that were accepted and whose destination no DNAT changes any more."""
        columns = part.columns
        hook = columns["hook"]
        last = np.isin(hook, [HOOKS.index(name) for name in _LAST_HOOKS])
        last &= self._last_table.mask(columns["table"], context)
        found: Array = (columns["verdict"] & np.uint32(0xFF)) == ACCEPT
        found &= (columns["exit_flags"] & np.uint8(record.EXIT_F_NO_VERDICT)) == 0
        found &= (columns["out"] != 0) & (columns["version"] != 0)
        found &= (hook == HOOKS.index(_LEAVES)) | last
        return found

    def _text_of(self, part: Part, context: Context, row: int) -> str:
        columns = part.columns
        dst = address(columns["dst"][row].tobytes(), int(columns["version"][row]))
        out = context.names.text(int(columns["out"][row]))
        known = context.neighbours[int(columns["host"][row])]
        return known.usable(int(columns["netns"][row]), dst, out).unresolved
