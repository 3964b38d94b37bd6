# SPDX-License-Identifier: GPL-2.0-only
"""The records of calls, made of runs and of what is known of each kind of hit.

No Python loop over runs.  Must not do I/O.
"""

from __future__ import annotations

import numpy as np

from ipttrace.capture.bpf.runs import Array, numbered
from ipttrace.capture.opaque import picked
from ipttrace.stream.record import RULE_DTYPE


def make_rules(patterns: Array, kinds: Array, calls: Array, times: Array, counts: Array) -> Array:
    """Rule records, which are `patterns[kinds]` except for call, time and seq.

    `calls`, `times`: of each hit; `counts`: how many hits each run has.
    """
    assert patterns.dtype == RULE_DTYPE
    rules = picked(patterns, kinds)
    rules["call"] = calls
    rules["time"] = times
    rules["seq"] = numbered(counts)
    return rules


def set_rulesets(entries: Array, rulesets: Array, kinds: Array, counts: Array) -> None:
    """Sets the generation of the entries whose runs have hits.

    `rulesets`: of each kind of hit; `kinds`: of each hit; `counts`: how many each run has.
    """
    if not len(kinds):
        return
    if (rulesets == rulesets[0]).all():
        entries["ruleset"] = np.where(counts > 0, rulesets[0], entries["ruleset"])
        return
    some = np.flatnonzero(counts)
    first = (np.cumsum(counts) - counts)[some]
    least = np.minimum.reduceat(rulesets[kinds], first)
    most = np.maximum.reduceat(rulesets[kinds], first)
    # If rules were replaced during the call, its generation is unknown.
    entries["ruleset"][some] = np.where(least == most, least, 0)
