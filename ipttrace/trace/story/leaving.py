# SPDX-License-Identifier: GPL-2.0-only
"""What source NAT made of a packet behind the last table that saw it.

Other rows of the flow show it: conntrack's entry, once NAT has been decided, or an
answer as it comes, which is addressed to the translated source.  Must not do I/O, and
must not loop over rows in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.store import Part, Store
from ipttrace.trace.story.changes import PacketChange
from ipttrace.trace.story.observation import Observation, endpoint
from ipttrace.trace.story.search import CALL

# Hooks behind whose tables the source is translated.
_HOOKS: Final = ("INPUT", "POSTROUTING")
_NEAR: Final = 1 << 14  # rows searched in each direction


def changed_behind(store: Store, last: Observation) -> tuple[PacketChange, ...]:
    """The source's change behind `last`, the packet's last row; nothing if unknown."""
    row = last.row
    if row.hook not in _HOOKS or row.verdict != "ACCEPT" or not row.flow or not row.src:
        return ()
    before = endpoint(row.src, row.sport)
    for part in store.parts(row.index - _NEAR, row.index + 1 + _NEAR):
        after = _by_conntrack(part, last) or _by_answer(store, part, last)
        if after is not None:
            change = PacketChange("src", f"{before} → {after}")
            return (change,) if after != before else ()
    return ()


def _by_conntrack(part: Part, last: Observation) -> str | None:
    columns, row = part.columns, last.row
    mine = (part.flows == np.uint64(row.flow)) & (columns["netns"] == row.netns)
    mine &= (columns["host"] == row.host) & (columns["flags"] & record.F_CONNTRACK != 0)
    rows = np.flatnonzero(mine)
    rows = rows[columns["ct_reply_src"][rows].any(axis=1)]
    if not rows.size:
        return None
    entry = Observation(row, columns, int(rows[-1]))
    before = endpoint(row.src, row.sport)
    for one, other in (("orig", "reply"), ("reply", "orig")):
        if entry.endpoint(one, "src") == before:
            return entry.endpoint(other, "dst")
    return None


def _by_answer(store: Store, part: Part, last: Observation) -> str | None:
    columns, here = part.columns, last.columns
    mine = (part.flows == np.uint64(last.row.flow)) & (columns["netns"] == last.row.netns)
    mine &= columns["host"] == last.row.host
    for ours, theirs in (("dst", "src"), ("dport", "sport"), ("proto", "proto")):
        same = columns[theirs] == here[ours][last.at]
        mine &= same.all(axis=1) if same.ndim > 1 else same
    rows = np.flatnonzero(mine)
    # As it comes: before NAT.
    begins = columns["call"][rows] == columns["journey"][rows] & np.uint64(CALL)
    rows = rows[begins]
    if not rows.size:
        return None
    (answer,) = store.rows([part.first + int(rows[-1])]) or (None,)
    return None if answer is None else endpoint(answer.dst, answer.dport)
