# SPDX-License-Identifier: GPL-2.0-only
"""Events to records of calls, for nftables and for legacy tables.

A call is one run of a packet through a base chain of nftables, or through a legacy
table at a hook: an entry record with the packet, a rule record for each rule hit,
return and policy, and an exit record with the verdict.  The flip table's events begin
journeys and make no call.  Must not do I/O, and must not loop over events in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import (
    ACCEPT_OR_DROP,
    CHAIN_END,
    LEGACY_FIELDS,
    NFT_FIELDS,
    POLICY,
    RETURN,
    UNKNOWN_VERDICT,
    VERDICT_CONTINUE,
    ChainRegistry,
    UniqueNumbers,
    bases,
    packet_length,
)
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.capture.opaque import joined, picked
from ipttrace.netfilter import ACCEPT, DROP, UNKNOWN_HOOK
from ipttrace.stream import record

# A call whose next event has not come after so long, ns, lost its end.
_PATIENCE: Final = 1_000_000_000
# A legacy call whose last event may have been its end, or may have dropped the packet.
_SHORT_PATIENCE: Final = 50_000_000

# Of each chain: names as in records, the table's family, a number for the table.
_CHAIN: Final = np.dtype(
    [("table", "S32"), ("chain", "S32"), ("family", "u1"), ("table_number", "i8")]
)

_ETHERTYPES: Final = {2: 0x0800, 10: 0x86DD, 3: 0x0806}


@dataclass(frozen=True, slots=True)
class Calls:
    """Records of n finished calls, in no order.

    `entries`, `exits`: shape (n,), row i of both is of the same call; `rules`: of all
    calls; `priority`: of the call's chain at its hook, int32, shape (n,); `cut`: the
    entries of calls whose exit was lost.
    """

    entries: Array
    exits: Array
    rules: Array
    priority: Array
    cut: Array

    @staticmethod
    def none() -> Calls:
        """No calls."""
        entries = np.zeros(0, record.ENTRY_DTYPE)
        exits = np.zeros(0, record.EXIT_DTYPE)
        rules = np.zeros(0, record.RULE_DTYPE)
        return Calls(entries, exits, rules, np.zeros(0, np.int32), entries)


_NONE: Final = Calls.none()


class CallMaker:
    """Makes calls from the events of one namespace and source, which are fed in order."""

    def __init__(
        self,
        chains: ChainRegistry,
        numbers: UniqueNumbers,
        names: RecordNames,
        source: int,
        went_on: Callable[[Array], Array] | None = None,
    ) -> None:
        """`source`: record.SOURCE_NFT or SOURCE_NFLOG.

        `went_on`: the first events of calls, shape (n,), to bool, shape (n,): did the packet
        meet a chain behind this one?
        """
        self._went_on = went_on
        self.incomplete = 0  # calls whose first or last event was lost
        self._registry = chains
        self._numbers = numbers
        self._names = names
        self._source = source
        # Legacy tables mark no first event, and do not always report the end.
        self._legacy = source == record.SOURCE_NFLOG
        self._pending: Array | None = None
        self._chains = np.zeros(0, _CHAIN)
        self._tables: dict[tuple[int, bytes], int] = {}

    def feed(self, events: Array, now: int, *, more: bool = True) -> Calls:
        """The calls that are finished at `now`, CLOCK_MONOTONIC ns.

        `more`: events may follow that show whether a packet was accepted.

        `events`: EVENT or LEGACY_EVENT, shape (n,), with `journey`, and located: with
        `rulenum` if they have a handle or end a chain, first events also with `hook`
        and `priority`.
        """
        if self._pending is not None:
            events = np.concatenate([self._pending, events]) if len(events) else self._pending
            self._pending = None
        if not len(events):
            return Calls.none()
        events = events[np.argsort(events["journey"], kind="stable")]
        journeys = events["journey"]
        first = np.append(True, journeys[1:] != journeys[:-1])
        self._add_chains()
        if self._legacy:
            _mark_legacy_heads(events, first)
            starts = np.flatnonzero(events["head"])
        else:
            starts = self._starts(events, first)
        ends = np.append(starts[1:], len(events)) - 1
        headed = events["head"][starts]
        self.incomplete += int((~headed).sum())
        over = events["last"][ends]
        # A later call of the same journey: the end of this one will not come.
        passed = np.append(~first[starts[1:]], False) if len(starts) > 1 else np.zeros(1, bool)
        patience = np.full(len(ends), _PATIENCE)
        if self._legacy:
            goes_on = events["verdict"][ends] == VERDICT_CONTINUE
            goes_on &= events["ruleset"][ends] != 0
            patience[~goes_on] = _SHORT_PATIENCE
        late = events["time"][ends].astype(np.int64) < now - patience
        wait = headed & ~over & ~passed & ~late
        if self._legacy:
            wait |= headed & self._undecided(events, starts, ends) & ~late & more
        lengths = ends - starts + 1
        if wait.any():
            self._pending = events[np.repeat(wait, lengths)]
        take = headed & ~wait
        if not take.any():
            return Calls.none()
        keep = np.repeat(take, lengths)
        events, lengths, over = events[keep], lengths[take], over[take]
        starts = np.cumsum(lengths) - lengths
        return self._records(events, starts, lengths, over)

    def _undecided(self, events: Array, starts: Array, ends: Array) -> Array:
        """The calls that ended with ACCEPT or DROP, not known which: bool, shape (n,).

        If the packet met a later chain, sets the verdict to ACCEPT.
        """
        undecided: Array = events["verdict"][ends] == ACCEPT_OR_DROP
        if self._went_on is not None and undecided.any():
            accepted = undecided & self._went_on(events[starts])
            events["verdict"][ends[accepted]] = ACCEPT
            undecided &= ~accepted
        return undecided

    def _starts(self, events: Array, first: Array) -> Array:
        """Where calls begin; if first events were lost, as far as the others show it."""
        begins = first | events["head"]
        # What follows the last event of a call belongs to another one.
        begins[1:] |= events["last"][:-1]
        starts = np.flatnonzero(begins)
        of = np.cumsum(begins) - 1
        head, chain = starts[of], events["chain"]
        # A call has one base chain, and one table.  Tracing that another program turned
        # on may begin in a chain that is not a base chain: its base chain comes later.
        based = (events["hook"] != UNKNOWN_HOOK)[head]
        ends_base = (events["hook"] != UNKNOWN_HOOK) | (events["kind"] == POLICY)
        table = self._chains["table_number"]
        foreign = (chain != chain[head]) & (
            (based & ends_base) | (table[chain] != table[chain[head]])
        )
        if foreign.any():
            at = np.flatnonzero(foreign)
            begins[at[np.append(True, of[at[1:]] != of[at[:-1]])]] = True
            starts = np.flatnonzero(begins)
        return starts

    def _records(self, events: Array, starts: Array, lengths: Array, over: Array) -> Calls:
        count = len(starts)
        call = self._numbers.take(count)
        heads, lasts = events[starts], events[starts + lengths - 1]
        base = events[bases(events["hook"], starts)]
        tables, chains = self._chains["table"], self._chains["chain"]
        of_call = np.repeat(np.arange(count), lengths)
        chain_end = events["kind"] == CHAIN_END
        # The end of a base chain is reported once more, as its policy.
        step = ~chain_end | (events["chain"] != base["chain"][of_call])
        of_step = of_call[step]
        steps = events[step]
        per_call = np.bincount(of_step, minlength=count)
        rules = np.zeros(len(steps), record.RULE_DTYPE)
        rules["call"] = call[of_step]
        rules["time"] = steps["time"]
        rules["rulenum"] = steps["rulenum"]
        rules["seq"] = np.arange(len(steps)) - np.repeat(np.cumsum(per_call) - per_call, per_call)
        rules["match"] = np.where(chain_end[step], RETURN, steps["kind"])
        rules["table"] = tables[steps["chain"]]
        rules["chain"] = chains[steps["chain"]]

        entries = np.zeros(count, record.ENTRY_DTYPE)
        entries["call"] = call
        entries["time"] = heads["time"]
        # Netlink reports no address of the skb: the journey's number takes its place, by
        # which trace.calls.journey joins calls as it does those of the kernel engine.
        entries["skb"] = heads["journey"]
        known = heads["mark_known"]
        entries["mark"] = np.where(known, heads["mark_before"], 0)
        entries["in_ifindex"] = heads["iif"]
        entries["out_ifindex"] = heads["oif"]
        entries["family"] = heads["family"]
        entries["hook"] = base["hook"]
        entries["table"] = tables[heads["chain"]]
        # If rules were replaced during the call, its generation is unknown.
        sure = np.minimum.reduceat(events["ruleset"], starts) == np.maximum.reduceat(
            events["ruleset"], starts
        )
        entries["ruleset"] = np.where(sure, heads["ruleset"], 0)
        entries["caplen"] = heads["caplen"]
        entries["mac"] = heads["mac"]
        entries["mac_len"] = heads["mac_len"]
        entries["packet"][:, : heads["packet"].shape[1]] = heads["packet"]
        entries["len"] = packet_length(heads["packet"], heads["caplen"])
        entries["source"] = self._source
        entries["tables"] = self._chains["family"][heads["chain"]]
        entries["trace_id"] = heads["id"]
        if self._legacy or heads["ct_info"].any() or heads["ct_flags"].any():
            for name in LEGACY_FIELDS if self._legacy else NFT_FIELDS:
                entries[name] = heads[name]
        entries["flags"] |= np.where(known, 0, record.F_NO_MARK).astype(np.uint8)
        entries["flags"] |= np.where(entries["len"], 0, record.F_NO_LEN).astype(np.uint8)
        for family, ethertype in _ETHERTYPES.items():
            entries["protocol"][heads["family"] == family] = ethertype

        exits = np.zeros(count, record.EXIT_DTYPE)
        exits["call"] = call
        exits["time"] = lasts["time"]
        exits["skb"] = entries["skb"]
        exits["mark"] = heads["mark"]
        verdict = lasts["verdict"].copy()
        if self._legacy:
            verdict[~over | (verdict == ACCEPT_OR_DROP)] = UNKNOWN_VERDICT
            over = np.ones(count, bool)
        exits["verdict"] = verdict.astype(np.uint32)
        exits["flags"][verdict == UNKNOWN_VERDICT] = record.EXIT_F_NO_VERDICT
        exits["rules"] = per_call
        if over.all():
            return Calls(entries, exits, rules, base["priority"], entries[:0])
        self.incomplete += int((~over).sum())
        return Calls(entries[over], exits[over], rules, base["priority"][over], entries[~over])

    def _add_chains(self) -> None:
        """Adds the chains that were registered since the last call."""
        new = self._registry.chains[len(self._chains) :]
        if not new:
            return
        added = np.zeros(len(new), _CHAIN)
        added["table"] = [self._names.short(chain.table) for chain in new]
        added["chain"] = [self._names.short(chain.chain) for chain in new]
        added["family"] = [chain.family for chain in new]
        added["table_number"] = [
            self._tables.setdefault((chain.family, chain.table), len(self._tables)) for chain in new
        ]
        self._chains = np.concatenate([self._chains, added])


def _mark_legacy_heads(events: Array, first: Array) -> None:
    """Sets `head` where another table or hook begins: legacy events do not mark it."""
    events["head"] = first
    events["head"][1:] |= events["last"][:-1]
    for name in ("hook", "priority"):
        events["head"][1:] |= events[name][1:] != events[name][:-1]


def in_order(calls: list[Calls]) -> tuple[list[Array], Array]:
    """Joins calls to records in time order, which is that in which packets met chains.

    Returns entries, rules and exits, and the priority of each entry's chain (0 for calls
    without an exit), int32.
    """
    some = [one for one in calls if len(one.entries) or len(one.cut)]
    if not some:
        return [_NONE.entries, _NONE.rules, _NONE.exits], _NONE.priority
    entries, rules, exits = (
        joined([stream_layout(getattr(one, name)) for one in some])
        for name in ("entries", "rules", "exits")
    )
    priority = np.concatenate([one.priority for one in some])
    times = entries["time"]
    if (times[1:] < times[:-1]).any():
        order = np.argsort(times, kind="stable")
        entries, exits, priority = picked(entries, order), picked(exits, order), priority[order]
    cut = [stream_layout(one.cut) for one in some if len(one.cut)]
    if cut:
        entries = joined([entries, *cut])
        missing = np.zeros(len(entries) - len(priority), np.int32)
        priority = np.concatenate([priority, missing])
    return [entries, rules, exits], priority


def dropped(exits: Array) -> Array:
    """Which calls are known to have dropped the packet: bool, shape (n,).  `exits`: EXIT."""
    known = exits["flags"] & record.EXIT_F_NO_VERDICT == 0
    found: Array = known & ((exits["verdict"] & 0xFF) == DROP)
    return found


def stream_layout(records: Array) -> Array:
    """The records with exactly the stream's dtype: concatenating changes ports' byte order."""
    for dtype in record.DTYPES:
        if records.dtype.names == dtype.names:
            return records if records.dtype == dtype else records.astype(dtype)
    return records
