# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through base chains to records of calls.

What rulesets determine (rule numbers, hooks, generations) comes from the netlink engine's
view of the namespace.  No Python loop over runs.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.capture.bpf.runs import NO_CONNTRACK, Array, LongNames, Runs
from ipttrace.capture.netlink.calls import Calls
from ipttrace.capture.netlink.events import (
    CHAIN_END,
    EVENT,
    POLICY,
    RETURN,
    RULE,
    ChainRegistry,
)
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.netfilter import DROP, STOLEN, UNKNOWN_HOOK
from ipttrace.stream import record

_OF_POLICY: Final = 1  # NFT_TRACETYPE_POLICY


def make_calls(
    runs: Runs,
    chains: ChainRegistry,
    locate: Callable[[Array], None],
    names: RecordNames,
    long: LongNames,
) -> Calls:
    """The calls that these runs, all of one namespace, were.

    `locate`: fills in what rulesets determine of events, EVENT, shape (n,); `long`: of the
    reader that has read the runs.
    """
    heads, hits, counts = runs.heads, runs.hits, runs.counts
    count = len(heads)
    if not count:
        return Calls.none()
    of_run = np.repeat(np.arange(count), counts)
    tables = long.whole(heads["table"])
    named = chains.numbers(
        heads["entry"]["tables"][of_run], _bytes(tables)[of_run], _bytes(long.whole(hits["chain"]))
    )
    events, first = _events(runs, named, of_run)
    locate(events)
    entries = heads["entry"].copy()
    some = np.flatnonzero(counts)  # all, unless programs could not run
    begin = events[first[some]]
    call = entries["call"]
    entries["table"] = _short(tables, names)
    entries["hook"][some] = np.where(
        begin["hook"] != UNKNOWN_HOOK, begin["hook"], entries["hook"][some]
    )
    entries["ct_flags"][some] = begin["ct_flags"] & record.CT_INVALID
    if len(some):
        least = np.minimum.reduceat(events["ruleset"], first[some])
        most = np.maximum.reduceat(events["ruleset"], first[some])
        # If rules were replaced during the call, its generation is unknown.
        entries["ruleset"][some] = np.where(least == most, least, 0)
    # The end of a base chain is reported once more, as its policy.
    chain_end = events["kind"] == CHAIN_END
    base = events["chain"][first[of_run]] if len(events) else events["chain"]
    step = ~chain_end | (events["chain"] != base)
    of_step, steps = of_run[step], events[step]
    per_call = np.bincount(of_step, minlength=count)
    rules = np.zeros(len(steps), record.RULE_DTYPE)
    rules["call"] = call[of_step]
    rules["time"] = hits["time"][step]
    rules["rulenum"] = steps["rulenum"]
    rules["seq"] = np.arange(len(steps)) - np.repeat(np.cumsum(per_call) - per_call, per_call)
    rules["match"] = np.where(steps["kind"] == CHAIN_END, RETURN, steps["kind"])
    rules["table"] = entries["table"][of_step]
    each, inverse = np.unique(steps["chain"], return_inverse=True)
    short = [names.short(chains.chains[number].chain) for number in each.tolist()]
    rules["chain"] = np.array(short, "S32")[inverse] if short else b""
    exits = heads["exit"].copy()
    lost = np.maximum(exits["rules"].astype(np.int64) - counts, 0)
    exits["rules"] = per_call + lost
    exits["verdict"] = _verdicts(exits["verdict"])
    return Calls(entries, exits, rules, np.zeros(count, np.int32), entries[:0])


def _events(runs: Runs, chains: Array, of_run: Array) -> tuple[Array, Array]:
    """The hits, in these chains, as events, and of each run where its first one is."""
    heads, hits, counts = runs.heads, runs.hits, runs.counts
    events = np.zeros(len(hits), EVENT)
    first = np.cumsum(counts) - counts
    if not len(hits):
        return events, first
    # Of the very run, so that no other generation can be meant: as if it were long ago.
    events["time"] = 0
    events["generation"] = heads["generation"][of_run]
    events["handle"] = hits["handle"]
    entries = heads["entry"]
    events["chain"] = chains
    kinds = [hits["type"] == _OF_POLICY, hits["handle"] != 0]
    events["kind"] = np.select(kinds, [POLICY, RULE], CHAIN_END)
    some = np.flatnonzero(counts)
    begins = first[some]
    events["head"][begins] = True
    for name in ("family", "ct_info", "hook"):
        events[name][begins] = entries[name][some]
    has_entry = entries["flags"][some] & record.F_CONNTRACK != 0
    has_entry |= heads["flags"][some] & NO_CONNTRACK != 0
    events["ct_flags"][begins] = np.where(has_entry, record.CT_STATE, 0)
    return events, first


def _bytes(names: Array) -> Array:
    """Names as bytes: uint8, shape (n, k)."""
    plain = np.ascontiguousarray(names)
    found: Array = plain.view(np.uint8).reshape(len(plain), plain.dtype.itemsize)
    return found


def _short(names: Array, known: RecordNames) -> Array:
    """Names as records have them: S32, shape (n,)."""
    begins = np.append(True, names[1:] != names[:-1])[: len(names)]
    found: Array = np.array([known.short(name) for name in names[begins].tolist()], "S32")
    every: Array = found[np.cumsum(begins) - 1]
    return every


def _verdicts(verdicts: Array) -> Array:
    """What nft_do_chain() returned: since Linux 6.7 a drop is STOLEN with an errno above it."""
    dropped = (verdicts & 0xFF == STOLEN) & (verdicts >> 16 != 0)
    found: Array = np.where(dropped, DROP, verdicts).astype(np.uint32)
    return found
