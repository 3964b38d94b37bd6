# SPDX-License-Identifier: GPL-2.0-only
"""Splits finished calls, as the kernel writes them, into the records of the stream.

A call crosses from the kernel in one piece, its entry, its exit and its first rules
(struct ipttrace_call_record of bpf/record.h), since each piece costs the traced host;
from here on there are only records.  No Python loop over records.  Must not import bcc.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.record import ENTRY_DTYPE, EXIT_DTYPE, RULE_DTYPE, Records

HITS: Final = 4
"""How many of a call's rules cross with it (IPTTRACE_HITS); further ones cross alone."""

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

# The same as opaque bytes: numpy copies structured arrays field by field, which is slow,
# and converts to native byte order, which would swap the bytes of ports.
_ENTRY: Final = f"V{ENTRY_DTYPE.itemsize}"
_EXIT: Final = f"V{EXIT_DTYPE.itemsize}"
_HIT: Final = f"V{HIT_DTYPE.itemsize}"
_PLAIN: Final = np.dtype([("entry", _ENTRY), ("exit", _EXIT), ("hits", _HIT, (HITS,))])
# The two parts that a hit and a rule record have in common.
_HIT_PARTS: Final = np.dtype([("hit", "V16"), ("chain", "V32")])
_RULE_PARTS: Final = np.dtype([("call", "<u8"), ("hit", "V16"), ("table", "V32"), ("chain", "V32")])


def split(parts: list[Records]) -> tuple[Records, Records, Records]:
    """The entries, rules and exits of all calls in `parts`, arrays of `CALL_DTYPE`.

    Sorted by time of entry: entry n and exit n are of the same call, and rules follow in
    the order of their calls.  Copies: the memory of `parts` may be reused afterwards.
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
    # Calls are written as they end, and by each CPU for itself.
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        entries = plain_entries[order].view(ENTRY_DTYPE)
        exits = plain_exits[order].view(EXIT_DTYPE)
        hits, counts = hits[order], counts[order]
    return entries, _rules(entries, hits, counts), exits


def _rules(entries: Records, hits: npt.NDArray[np.void], counts: npt.NDArray[np.uint16]) -> Records:
    """The first counts[n] hits of each row n, as rule records; `hits`: shape (calls, most)."""
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
    rules["hit"], rules["chain"] = found["hit"], found["chain"]
    result: Records = rules.view(RULE_DTYPE)
    return result
