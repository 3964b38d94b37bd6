# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through legacy tables to records of calls, by the tables' rules of then.

No Python loop over runs.  Must not do I/O.
"""

from __future__ import annotations

import numpy as np

from ipttrace.capture.bpf.runs import Array, Runs
from ipttrace.capture.netlink.calls import Calls
from ipttrace.capture.netlink.legacy_timeline import LOCATED, LegacyTimeline
from ipttrace.stream import record


def make_legacy_calls(runs: Runs, timeline: LegacyTimeline | None) -> Calls:
    """The calls that these runs, all of one namespace, were.

    `timeline`: of the namespace, None if its rules are unknown: then matches are as the
    kernel logged them, which calls every unconditional verdict a policy or a return.
    """
    heads, hits, counts = runs.heads, runs.hits, runs.counts
    count = len(heads)
    if not count:
        return Calls.none()
    entries, exits = heads["entry"].copy(), heads["exit"].copy()
    of_run = np.repeat(np.arange(count), counts)
    rules = np.zeros(len(hits), record.RULE_DTYPE)
    rules["call"] = entries["call"][of_run]
    rules["time"] = hits["time"]
    rules["rulenum"] = hits["handle"]
    rules["seq"] = np.arange(len(hits)) - np.repeat(np.cumsum(counts) - counts, counts)
    rules["match"] = hits["type"]
    rules["table"] = entries["table"][of_run]
    rules["chain"] = hits["chain"]
    if timeline is not None and len(hits):
        events = np.zeros(len(hits), LOCATED)
        for name in ("time", "rulenum"):
            events[name] = rules[name]
        events["kind"] = rules["match"]
        for name in ("hook", "family"):
            events[name] = entries[name][of_run]
        names = [_bytes(rules[name]) for name in ("table", "chain")]
        events["chain"] = timeline.chains.numbers(np.zeros(len(hits), np.uint8), *names)
        timeline.locate(events)
        rules["match"] = events["kind"]
        some = np.flatnonzero(counts)
        first = (np.cumsum(counts) - counts)[some]
        least = np.minimum.reduceat(events["ruleset"], first)
        most = np.maximum.reduceat(events["ruleset"], first)
        # If rules were replaced during the call, its generation is unknown.
        entries["ruleset"][some] = np.where(least == most, least, 0)
    return Calls(entries, exits, rules, np.zeros(count, np.int32), entries[:0])


def _bytes(names: Array) -> Array:
    """Names as bytes: uint8, shape (n, k)."""
    plain = np.ascontiguousarray(names)
    found: Array = plain.view(np.uint8).reshape(len(plain), plain.dtype.itemsize)
    return found
