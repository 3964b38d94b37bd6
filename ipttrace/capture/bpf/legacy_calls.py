# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through legacy tables to records of calls, by the tables' rules of then.

No Python loop over runs.  Must not do I/O.
"""

from __future__ import annotations

import numpy as np

from ipttrace.capture.bpf.alike import alike, words_of
from ipttrace.capture.bpf.records import make_rules, set_rulesets
from ipttrace.capture.bpf.runs import Array, RunNames, Runs
from ipttrace.capture.netlink.calls import Calls
from ipttrace.capture.netlink.legacy_timeline import LOCATED, LegacyTimeline
from ipttrace.stream import record


def make_legacy_calls(runs: Runs, timeline: LegacyTimeline | None, names: RunNames) -> Calls:
    """The calls that these runs, all of one namespace, were; the runs' entries become theirs.

    `names`: of the reader that has read the runs; `timeline`: of the namespace, None if its
    rules are unknown: then matches are as the kernel logged them, which calls every
    unconditional verdict a policy or a return.
    """
    entries, exits, hits, counts = runs.entries, runs.exits, runs.hits, runs.counts
    count = len(entries)
    if not count:
        return Calls.none()
    of_run = np.repeat(np.arange(count), counts)
    columns = [entries["hook"], entries["family"], *words_of(entries, "table")]
    run_kinds = alike(columns)[1]
    columns = [run_kinds[of_run], hits["handle"], hits["type"], hits["chain"]]
    if timeline is not None:
        columns.append(timeline.stretch(hits["time"]))
    ones, kinds = alike(columns)
    patterns = np.zeros(len(ones), record.RULE_DTYPE)
    patterns["rulenum"] = hits["handle"][ones]
    patterns["match"] = hits["type"][ones]
    patterns["table"] = entries["table"][of_run[ones]]
    patterns["chain"] = names.of(hits["chain"][ones])
    if timeline is not None and len(hits):
        events = np.zeros(len(ones), LOCATED)
        events["time"] = hits["time"][ones]
        events["rulenum"] = patterns["rulenum"]
        events["kind"] = patterns["match"]
        for name in ("hook", "family"):
            events[name] = entries[name][of_run[ones]]
        table, chain = (_bytes(patterns[name]) for name in ("table", "chain"))
        events["chain"] = timeline.chains.numbers(np.zeros(len(ones), np.uint8), table, chain)
        timeline.locate(events)
        patterns["match"] = events["kind"]
        set_rulesets(entries, events["ruleset"], kinds, counts)
    rules = make_rules(patterns, kinds, entries["call"][of_run], hits["time"], counts)
    return Calls(entries, exits, rules, np.zeros(count, np.int32), entries[:0])


def _bytes(names: Array) -> Array:
    """Names as bytes: uint8, shape (n, k)."""
    plain = np.ascontiguousarray(names)
    found: Array = plain.view(np.uint8).reshape(len(plain), plain.dtype.itemsize)
    return found
