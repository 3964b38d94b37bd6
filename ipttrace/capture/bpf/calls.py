# SPDX-License-Identifier: GPL-2.0-only
"""Runs of packets through base chains to records of calls.

What rulesets determine (rule numbers, hooks, generations) comes from the netlink engine's
view of the namespace.  No Python loop over runs.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.capture.bpf.alike import alike
from ipttrace.capture.bpf.records import make_rules, set_rulesets
from ipttrace.capture.bpf.runs import NO_CONNTRACK, Array, RunNames, Runs
from ipttrace.capture.netlink.calls import Calls
from ipttrace.capture.netlink.events import (
    CHAIN_END,
    EVENT,
    POLICY,
    RETURN,
    RULE,
    ChainKey,
    ChainRegistry,
    bases,
)
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.capture.opaque import picked
from ipttrace.netfilter import DROP, FAMILY_HOOKS, STOLEN, UNKNOWN_HOOK
from ipttrace.stream import record

_OF_POLICY: Final = 1  # NFT_TRACETYPE_POLICY


def make_calls(
    runs: Runs,
    chains: ChainRegistry,
    locate: Callable[[Array, Array, Array], None],
    names: RecordNames,
    told: RunNames,
) -> Calls:
    """The calls that these runs, all of one namespace, were; the runs' entries become theirs.

    `locate`: fills in what rulesets determine of events, EVENT, shape (n,), for each alone, as
    Generations.locate does;
    `told`: of the reader that has read the runs.
    """
    entries, exits, hits, counts = runs.entries, runs.exits, runs.hits, runs.counts
    count = len(entries)
    if not count:
        return Calls.none()
    of_run = np.repeat(np.arange(count), counts)
    run_ones, run_kinds = _kinds_of_runs(runs)
    tables = told.of(runs.heads["table"][run_ones])
    entries["table"] = _short(tables, names)[run_kinds]
    some = np.flatnonzero(counts)  # all, unless programs could not run
    first = np.cumsum(counts) - counts
    is_head = np.zeros(len(hits), bool)
    is_head[first[some]] = True
    columns = [run_kinds[of_run], hits["handle"], hits["type"] == _OF_POLICY, is_head]
    # A handle that means one rule or another is told apart by its verdict.
    verdicts = np.where(runs.heads["later"][of_run] > 0, hits["verdict"], 0)
    ones, kinds = alike([*columns, hits["chain"], verdicts])
    events = _events(runs, ones, of_run[ones], is_head[ones])
    events["verdict"] = verdicts[ones]
    of_ones = of_run[ones]
    keys = zip(
        entries["tables"][of_ones].tolist(),
        [tables[kind] for kind in run_kinds[of_ones].tolist()],
        told.of(hits["chain"][ones]),
        strict=True,
    )
    events["chain"] = [chains.number(ChainKey(*key)) for key in keys]
    later = runs.heads["later"][of_ones].astype(np.uint32)
    after = np.where(later > 0, events["generation"] + later, np.uint32(0))
    locate(events, after, told.handles(runs.heads["table"][of_ones]))
    begin = kinds[first[some]]
    base = begin
    if (events["hook"] == UNKNOWN_HOOK).any():
        # Packets may be marked in a chain that rules jump to: its base chain comes later.
        base = kinds[bases(events["hook"][kinds], first[some])]
    hook = events["hook"][base]
    _number_hooks(entries)
    entries["hook"][some] = np.where(hook != UNKNOWN_HOOK, hook, entries["hook"][some])
    entries["ct_flags"][some] = events["ct_flags"][begin] & record.CT_INVALID
    set_rulesets(entries, events["ruleset"], kinds, counts)
    each, inverse = np.unique(events["chain"], return_inverse=True)
    patterns = np.zeros(len(ones), record.RULE_DTYPE)
    patterns["rulenum"] = events["rulenum"]
    patterns["match"] = np.where(events["kind"] == CHAIN_END, RETURN, events["kind"])
    patterns["table"] = entries["table"][of_ones]
    patterns["chain"] = _short([chains.chains[one].chain for one in each.tolist()], names)[inverse]
    times, per_call = hits["time"], counts
    if (events["kind"] == CHAIN_END).any():
        # The end of a base chain is reported once more, as its policy.
        base_chains = np.zeros(count, events["chain"].dtype)
        base_chains[some] = events["chain"][base]
        step = events["kind"][kinds] != CHAIN_END
        step |= events["chain"][kinds] != base_chains[of_run]
        kinds, times, of_run = kinds[step], times[step], of_run[step]
        per_call = np.bincount(of_run, minlength=count)
    rules = make_rules(patterns, kinds, entries["call"][of_run], times, per_call)
    lost = np.maximum(exits["rules"].astype(np.int64) - counts, 0)
    exits["rules"] = per_call + lost
    exits["verdict"] = _verdicts(exits["verdict"])
    return Calls(entries, exits, rules, np.zeros(count, np.int32), entries[:0])


def _kinds_of_runs(runs: Runs) -> tuple[Array, Array]:
    """Of each kind of run one, and each run's kind, by all that events need of an entry."""
    columns = [runs.entries[name] for name in ("tables", "family", "hook", "ct_info")]
    has_entry = _has_entry(runs.entries["flags"], runs.heads["flags"])
    heads = [runs.heads[name] for name in ("generation", "later", "table")]
    return alike([*columns, *heads, has_entry])


def _number_hooks(entries: Array) -> None:
    """Gives hooks of families with hooks of their own the numbers that HOOKS has."""
    raw = entries["hook"].copy()
    for family, numbers in FAMILY_HOOKS.items():
        of_family = entries["tables"] == family
        if of_family.any():
            for number, hook in numbers.items():
                entries["hook"][of_family & (raw == number)] = hook


def _has_entry(flags: Array, run_flags: Array) -> Array:
    """Whether the packets had a conntrack entry: bool, shape (n,)."""
    found: Array = flags & record.F_CONNTRACK != 0
    found |= run_flags & NO_CONNTRACK != 0
    return found


def _events(runs: Runs, which: Array, of_run: Array, head: Array) -> Array:
    """Some hits as events, without their chains: EVENT, shape (k,).

    `which`: indices of hits; `of_run`: that of each hit's run; `head`: is it the run's first?
    """
    heads, hits, entries = runs.heads[of_run], runs.hits[which], picked(runs.entries, of_run)
    events = np.zeros(len(which), EVENT)
    events["generation"] = heads["generation"]
    events["handle"] = hits["handle"]
    kinds = [hits["type"] == _OF_POLICY, hits["handle"] != 0]
    events["kind"] = np.select(kinds, [POLICY, RULE], CHAIN_END)
    events["head"] = head
    for name in ("family", "ct_info", "hook"):
        events[name] = np.where(head, entries[name], 0)
    known = _has_entry(entries["flags"], heads["flags"])
    events["ct_flags"] = np.where(head & known, record.CT_STATE, 0)
    return events


def _short(names: list[bytes], known: RecordNames) -> Array:
    """Names as records have them: S32, shape (n,)."""
    return np.array([known.short(name) for name in names], "S32")


def _verdicts(verdicts: Array) -> Array:
    """What nft_do_chain() returned: since Linux 6.7 a drop is STOLEN with an errno above it."""
    dropped = (verdicts & 0xFF == STOLEN) & (verdicts >> 16 != 0)
    found: Array = np.where(dropped, DROP, verdicts).astype(np.uint32)
    return found
