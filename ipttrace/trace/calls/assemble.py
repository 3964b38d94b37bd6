# SPDX-License-Identifier: GPL-2.0-only
"""Joins the entry, rule and exit records of each call.

A batch is entries, then rules, then exits, as many frames of each as there are.  Any
record may be missing, and a call may be spread over batches.  Calls nest, so only the
call id identifies the records of a call.

A call is given up if its other records have not come 30 s later (by the records' own
times, in a later batch), if too many calls of earlier batches wait, or if one batch is
larger than the memory for it.  Each is counted once: `incomplete`.  Must not do I/O or
loop over records in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Recent, join, pick
from ipttrace.trace.calls.journey import Journeys
from ipttrace.trace.calls.waiting import Waiting

# After this time, a missing exit is taken for lost.
PATIENCE_NS: Final = 30_000_000_000

# Bytes of a batch's records that wait for the exits: 900,000 calls, each with four rules.
_ROOM: Final = {record.ENTRY: 384 << 20, record.RULE: 320 << 20, record.EXIT: 64 << 20}
# Records of earlier batches that still wait for others of their call.
_LEFT: Final = {record.ENTRY: 1 << 17, record.RULE: 1 << 19, record.EXIT: 1 << 17}
_INBOX: Final = 32 << 20  # bytes that are joined at a time
_REMEMBERED: Final = 1 << 20  # calls that were given up
_NEVER: Final = (1 << 64) - 1  # ns


@dataclass(frozen=True, slots=True)
class Calls:
    """n finished calls in order of their entries' times."""

    entries: Array  # entry records, shape (n,)
    exits: Array  # exit records, shape (n,)
    journeys: Array  # uint64, shape (n,)
    counts: Array  # the number of rule records of each call, shape (n,)
    rules: Array  # rule records, call by call, in order of `seq`; "return" of a
    #               deciding rule is corrected to "rule", see _decide
    partial: Array  # bool, shape (n,): are rule records missing?
    decided: Array  # bool, shape (n,): is the last rule record present?

    def __len__(self) -> int:
        return len(self.entries)


class Assembler:
    """Records in, finished calls out."""

    def __init__(self, patience: int = PATIENCE_NS) -> None:
        self._patience = patience
        self._inbox: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
        self._inbox_size = 0  # bytes
        self._entries, self._rules, self._exits = (
            Waiting(dtype, _ROOM[kind] // dtype.itemsize)
            for kind, dtype in enumerate(record.DTYPES)
        )
        self._journeys = Journeys()
        self._given_up = Recent(_REMEMBERED)  # calls; the values have no meaning
        self._exits_came = False  # exits of the current batch
        self._oldest = _NEVER  # time of a record of the current batch, ns
        # Calls that will never be complete, each counted once.
        self.incomplete = 0

    def feed(self, kind: int, records: Array) -> Calls | None:
        """Adds records, shape (n,), of `record.DTYPES[kind]`.

        Exits end a batch: returns the calls finished by then, with those of their rule
        records that have come; otherwise None.
        """
        if kind == record.EXIT:
            self._exits_came = True
        elif self._exits_came:
            self._begin_batch()
        if len(records):
            self._inbox[kind].append(records)
            self._inbox_size += records.nbytes
        if kind == record.EXIT or self._inbox_size > _INBOX:
            return self.flush()
        return None

    @property
    def between(self) -> bool:
        """Whether no batch has begun whose exits have not come."""
        return not self._inbox_size

    @property
    def waiting(self) -> int:
        """The number of calls that are incomplete so far."""
        return len(self._entries) + len(self._exits)

    def finish(self) -> Calls | None:
        """Returns the last calls; counts those that still wait as incomplete."""
        calls = self.flush()
        self._give_up(self._entries.clear(), self._exits.clear())
        self._rules.clear()
        self._begin_batch()
        return calls

    @property
    def size(self) -> int:
        """Bytes of the records that wait."""
        return self._inbox_size + self._entries.size + self._rules.size + self._exits.size

    def flush(self) -> Calls | None:
        """Returns the calls finished by now; None if there are none."""
        if not self._inbox_size:
            return None
        entries, rules, exits = (
            join(parts, dtype) for parts, dtype in zip(self._inbox, record.DTYPES, strict=True)
        )
        self._inbox = ([], [], [])
        self._inbox_size = 0
        self._oldest = min(self._oldest, _oldest(entries, rules, exits))
        journeys = self._journeys.assign(entries, exits)
        entries, journeys, exits = self._match(entries, journeys, exits)
        rules, counts = self._paths(rules, exits)
        # Not the newest: within a batch, the exits of its oldest entries may come last.
        if self._oldest > self._patience:
            before = self._oldest - self._patience
            self._give_up(self._entries.expire(before), self._exits.expire(before))
            self._rules.expire(before)
        if not len(entries):
            return None
        ends = np.cumsum(counts)
        decided = np.zeros(len(entries), bool)
        some = counts > 0
        decided[some] = rules["seq"][ends[some] - 1].astype(np.int64) + 1 >= exits["rules"][some]
        _decide(rules, ends[decided & _is_kernels_word(entries, exits)] - 1)
        return Calls(entries, exits, journeys, counts, rules, counts < exits["rules"], decided)

    def _match(self, entries: Array, journeys: Array, exits: Array) -> tuple[Array, Array, Array]:
        """Returns entries, their journeys and their exits, pairwise, in order of time.

        The others go to the waiting records.
        """
        late = self._exits.find_all(np.sort(entries["call"]))
        if late.size:
            exits = join([exits, self._exits.take(late)[0]], exits.dtype)
        order = _ascending(exits["call"])
        calls = exits["call"] if order is None else exits["call"][order]
        if len(calls) > 1:
            again = np.append(False, calls[1:] == calls[:-1])
            if again.any():  # only a forged stream has two exits of one call
                order = np.arange(len(calls)) if order is None else order
                calls, order = calls[~again], order[~again]
        which, hit = _find(entries["call"], calls)
        sources = [which[hit]]
        takers = [np.flatnonzero(hit)]
        missing = np.flatnonzero(~hit)
        if missing.size:
            found = self._entries.find(calls[missing])
            early = found >= 0
            if early.any():
                old, beside = self._entries.take(found[early])
                sources.append(np.arange(len(entries), len(entries) + len(old)))
                takers.append(missing[early])
                missing = missing[~early]
                entries = join([entries, old], entries.dtype)
                journeys = np.concatenate([journeys, beside])
            lost = missing if order is None else order[missing]
            self._give_up(self._exits.add(self._wanted(pick(exits, lost))))
        source, taker = np.concatenate(sources), np.concatenate(takers)
        if len(source) < len(entries):
            alone = np.ones(len(entries), bool)
            alone[source] = False
            alone[alone] = ~self._is_given_up(entries["call"][alone])
            self._give_up(self._entries.add(pick(entries, alone), journeys[alone]))
        by_time = np.argsort(entries["time"][source], kind="stable")
        source, taker = source[by_time], taker[by_time]
        if order is not None:
            taker = order[taker]
        return pick(entries, source), journeys[source], pick(exits, taker)

    def _paths(self, rules: Array, exits: Array) -> tuple[Array, Array]:
        """Returns the rule records of these exits' calls, in order, and their number per call."""
        first, counts, order = _ranges(rules, exits["call"])
        short = np.flatnonzero(counts < exits["rules"]) if len(self._rules) else counts[:0]
        if short.size:
            late = self._rules.find_all(np.sort(exits["call"][short]))
            if late.size:
                rules = join([self._rules.take(late)[0], rules], rules.dtype)
                first, counts, order = _ranges(rules, exits["call"])
        total = int(counts.sum())
        starts = np.cumsum(counts) - counts
        at = np.repeat(first - starts, counts) + np.arange(total)
        if order is not None:
            at = order[at]
        if total < len(rules):
            alone = np.ones(len(rules), bool)
            alone[at] = False
            self._rules.add(self._wanted(pick(rules, alone)))
        return pick(rules, at), counts

    def _begin_batch(self) -> None:
        self._exits_came = False
        self._oldest = _NEVER
        self._give_up(self._entries.trim(_LEFT[record.ENTRY]), self._exits.trim(_LEFT[record.EXIT]))
        self._rules.trim(_LEFT[record.RULE])

    def _give_up(self, *evicted: Array) -> None:
        """Counts the calls of evicted entries and exits, and remembers them."""
        for calls in evicted:
            if len(calls):
                self.incomplete += len(calls)
                self._given_up.put(calls, calls)

    def _is_given_up(self, calls: Array) -> Array:
        """Returns bool (n,): was this call given up, so that its records are of no use?"""
        return self._given_up.get(calls)[1]

    def _wanted(self, records: Array) -> Array:
        """Returns the records, shape (k,), of the calls that were not given up."""
        if not len(self._given_up):
            return records
        return pick(records, ~self._is_given_up(records["call"]))


def _is_kernels_word(entries: Array, exits: Array) -> Array:
    """The calls whose matches are as the kernel reported them: bool, shape (n,).

    Engines compare a rule's number with the end of its chain, unless the rules are unknown or
    changed during the call.  nftables has a message of its own for the end of a chain.
    """
    unknown = (entries["ruleset"] == 0) | (exits["flags"] & record.EXIT_F_CHANGED != 0)
    found: Array = unknown & (entries["source"] != record.SOURCE_NFT)
    return found


def _decide(rules: Array, last: Array) -> None:
    """Corrects the match of deciding rules, the records at `last`, of _is_kernels_word.

    The kernel reports "return" for every unconditional rule with a standard verdict in
    a user-defined chain, even `-A LOGDROP -j DROP` (get_chainname_rulenum() in
    net/ipv4/netfilter/ip_tables.c).  A real return is not the last hit: the calling
    chain continues with another rule or the policy.  The exception is a match in that
    chain that drops a malformed packet (hotdrop): the call ends without another record,
    and the return is taken for the rule.
    """
    match = rules["match"]
    match[last[match[last] == record.MATCH_RETURN]] = record.MATCH_RULE


def _oldest(*kinds: Array) -> int:
    return min(int(records["time"].min()) for records in kinds if len(records))


def _ascending(values: Array) -> Array | None:
    """Returns the order that sorts `values`; None if they are sorted."""
    if len(values) < 2 or bool((values[1:] >= values[:-1]).all()):
        return None
    return np.argsort(values, kind="stable")


def _find(values: Array, wanted: Array) -> tuple[Array, Array]:
    """Returns the index of each wanted value, and whether there is one, bool (n,)."""
    if not len(values):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    order = _ascending(values)
    ordered = values if order is None else values[order]
    at = np.searchsorted(ordered, wanted)
    at[at == len(ordered)] = 0
    hit = ordered[at] == wanted
    return (at if order is None else order[at]), hit


def _ranges(rules: Array, calls: Array) -> tuple[Array, Array, Array | None]:
    """Returns each call's first rule and number of rules in an order, and that order."""
    mine = np.ascontiguousarray(rules["call"])
    order = _ascending(mine)
    if order is not None:
        mine = mine[order]
    seq = rules["seq"] if order is None else rules["seq"][order]
    if len(mine) > 1 and bool(((mine[1:] == mine[:-1]) & (seq[1:] < seq[:-1])).any()):
        order = np.lexsort((rules["seq"], rules["call"]))
        mine = rules["call"][order]
    first = np.searchsorted(mine, calls, "left")
    return first, np.searchsorted(mine, calls, "right") - first, order
