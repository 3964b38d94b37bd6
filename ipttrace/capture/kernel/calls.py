# SPDX-License-Identifier: GPL-2.0-only
"""Finished calls as the kernel writes them, split into the records of the stream.

A call crosses in one piece, its entry, its exit and its first rules
(`struct ipttrace_whole` in ``bpf/record.h``), because each piece costs the
traced; nothing behind this knows of it.  No Python loop over records.  Must not
import bcc.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.record import ENTRY_DTYPE, EXIT_DTYPE, RULE_DTYPE, Records

HITS: Final = 4
"""Of a call's rules, how many come with it; those after them come by themselves."""

HIT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("time", "<u8"),
        ("rulenum", "<u4"),
        ("seq", "<u2"),
        ("match", "u1"),
        ("reserved", "u1"),
        ("chain", "S32"),
    ]
)

CALL_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("entry", ENTRY_DTYPE), ("exit", EXIT_DTYPE), ("hits", HIT_DTYPE, (HITS,))]
)

# The same as bytes that are moved and not looked into: numpy copies structured
# arrays field by field, slowly, and into native byte order, which would turn
# ports round.
_ENTRY: Final = f"V{ENTRY_DTYPE.itemsize}"
_EXIT: Final = f"V{EXIT_DTYPE.itemsize}"
_HIT: Final = f"V{HIT_DTYPE.itemsize}"
_PLAIN: Final = np.dtype([("entry", _ENTRY), ("exit", _EXIT), ("hits", _HIT, (HITS,))])
# What a hit and its rule record have alike, in two pieces.
_HIT_PARTS: Final = np.dtype([("what", "V16"), ("chain", "V32")])
_RULE_PARTS: Final = np.dtype(
    [("call", "<u8"), ("what", "V16"), ("table", "V32"), ("chain", "V32")]
)


def split(parts: list[Records]) -> tuple[Records, Records, Records]:
    """Entries, rules and exits of all calls in `parts`, arrays of `CALL_DTYPE`.

    Entries and exits pairwise, by time of entry, rules call by call.  Copies:
    what `parts` lie in may be written to afterwards.
    """
    total = sum(map(len, parts))
    plain_entries = np.empty(total, _ENTRY)
    plain_exits = np.empty(total, _EXIT)
    exits: Records = plain_exits.view(EXIT_DTYPE)
    entries: Records = plain_entries.view(ENTRY_DTYPE)
    at = 0
    for part in parts:
        plain = part.view(_PLAIN)
        plain_entries[at : at + len(part)] = plain["entry"]
        plain_exits[at : at + len(part)] = plain["exit"]
        at += len(part)
    counts = np.minimum(exits["rules"], HITS)
    most = int(counts.max(initial=0))
    hits = np.empty((total, most), _HIT)
    at = 0
    for part in parts:
        hits[at : at + len(part)] = part.view(_PLAIN)["hits"][:, :most]
        at += len(part)
    times = entries["time"]
    # Calls end in another order than they begin, inside one another and by CPU.
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        entries = plain_entries[order].view(ENTRY_DTYPE)
        exits = plain_exits[order].view(EXIT_DTYPE)
        hits, counts = hits[order], counts[order]
    return entries, _rules(entries, hits, counts), exits


def _rules(entries: Records, hits: npt.NDArray[np.void], counts: npt.NDArray[np.uint16]) -> Records:
    """The first `counts` of each row of `hits` as rule records."""
    most = hits.shape[1]
    calls, tables = entries["call"], entries["table"].view("V32")
    if most and not (counts == most).all():
        hits = hits[np.arange(most) < counts[:, None]]
        calls, tables = np.repeat(calls, counts), np.repeat(tables, counts)
    elif most != 1:
        calls, tables = np.repeat(calls, most), np.repeat(tables, most)
    found = hits.reshape(-1).view(_HIT_PARTS)
    rules = np.empty(len(found), _RULE_PARTS)
    rules["call"], rules["table"] = calls, tables
    rules["what"], rules["chain"] = found["what"], found["chain"]
    result: Records = rules.view(RULE_DTYPE)
    return result
