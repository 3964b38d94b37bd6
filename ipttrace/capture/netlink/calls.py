# SPDX-License-Identifier: GPL-2.0-only
"""Events of nftables' trace to the records of calls.

A run through a base chain is a call: an entry with the packet, a record for each
rule on the way, an exit with the verdict.  The table of our own, which starts the
tracing, is no call: it tells where the journey of a packet begins.  Must not do
I/O, and must not loop over events in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.nft import decode as nft_trace
from ipttrace.capture.netlink.nft.decode import EVENT, Places
from ipttrace.netfilter import UNKNOWN_HOOK
from ipttrace.stream import record

# A call whose rest has not come by then had it lost, ns.
_PATIENCE: Final = 1_000_000_000
_VAGUE_PATIENCE: Final = 50_000_000
# A verdict that nobody knows; no NF_* has this number.
UNTOLD: Final = 0xFF

_NAMED: Final = np.dtype([("table", "S32"), ("chain", "S32"), ("family", "u1"), ("number", "i8")])

_ETHERTYPES: Final = {2: 0x0800, 10: 0x86DD, 3: 0x0806}


class Numbers:
    """Numbers that come once: of calls, and of journeys."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def take(self, count: int) -> Array:
        """`count` of them, uint64, ascending."""
        first = self._next
        self._next += count
        return np.arange(first, self._next, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Calls:
    """Records of n finished calls, in no order.

    `entries`, `exits`: shape (n,), of the same call at the same place; `rules`:
    of all calls; `priority`: int32, shape (n,), of the chain at its hook.  Calls that
    will not end have an entry without an exit: `cut`.
    """

    entries: Array
    exits: Array
    rules: Array
    priority: Array
    cut: Array

    @staticmethod
    def none() -> Calls:
        entries = np.zeros(0, record.ENTRY_DTYPE)
        exits = np.zeros(0, record.EXIT_DTYPE)
        rules = np.zeros(0, record.RULE_DTYPE)
        return Calls(entries, exits, rules, np.zeros(0, np.int32), entries)


class CallMaker:
    """Of one namespace and source: takes events in order, gives finished calls."""

    def __init__(self, places: Places, numbers: Numbers, source: int) -> None:
        """`source`: record.SOURCE_*."""
        self.incomplete = 0  # runs whose first or last message never came
        self._places = places
        self._numbers = numbers
        self._source = source
        # Lines of legacy tables do not always tell how it ended, or that it did.
        self._vague = source == record.SOURCE_NFLOG
        self._patience = _VAGUE_PATIENCE if self._vague else _PATIENCE
        self._pending: Array | None = None
        self._named = np.zeros(0, _NAMED)  # of each place; its table by name and by number
        self._tables: dict[tuple[int, bytes], int] = {}

    def feed(self, events: Array, now: int) -> Calls:
        """Events that have a journey, located; `now`: CLOCK_MONOTONIC, ns.

        Of the dtype EVENT, or one that has more fields, which are an entry's.  Located:
        `rulenum` of those that have a handle, or that end a chain; of heads also `hook`
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
        self._look_at_places()
        if self._vague:
            _find_heads(events, first)
            starts = np.flatnonzero(events["head"])
        else:
            starts = self._starts(events, first)
        ends = np.append(starts[1:], len(events)) - 1
        headed = events["head"][starts]
        self.incomplete += int((~headed).sum())
        over = events["last"][ends]
        # What comes after it in the same journey says that its end will not come.
        passed = np.append(~first[starts[1:]], False) if len(starts) > 1 else np.zeros(1, bool)
        late = events["time"][ends].astype(np.int64) < now - self._patience
        wait = headed & ~over & ~passed & ~late
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

    def _starts(self, events: Array, first: Array) -> Array:
        """Where runs begin, those too whose first messages are lost, as far as that shows."""
        begins = first | events["head"]
        # What comes after the end of a run is none of it.
        begins[1:] |= events["last"][:-1]
        starts = np.flatnonzero(begins)
        of = np.cumsum(begins) - 1
        head, place = starts[of], events["place"]
        # No run has a second base chain, or one of another table.  Somebody's own
        # tracing may begin in a user's chain: then its base chain comes later.
        based = (events["hook"] != UNKNOWN_HOOK)[head]
        ends_base = (events["hook"] != UNKNOWN_HOOK) | (events["kind"] == nft_trace.POLICY)
        table = self._named["number"]
        strange = (place != place[head]) & (
            (based & ends_base) | (table[place] != table[place[head]])
        )
        if strange.any():
            at = np.flatnonzero(strange)
            begins[at[np.append(True, of[at[1:]] != of[at[:-1]])]] = True
            starts = np.flatnonzero(begins)
        return starts

    def _records(self, events: Array, starts: Array, lengths: Array, over: Array) -> Calls:
        count = len(starts)
        call = self._numbers.take(count)
        heads, lasts = events[starts], events[starts + lengths - 1]
        tables, chains = self._named["table"], self._named["chain"]
        of_call = np.repeat(np.arange(count), lengths)
        passed = events["kind"] == nft_trace.PASSED
        # The end of a base chain is told again as its policy.
        step = ~passed | (events["place"] != heads["place"][of_call])
        of_step = of_call[step]
        steps = events[step]
        per_call = np.bincount(of_step, minlength=count)
        rules = np.zeros(len(steps), record.RULE_DTYPE)
        rules["call"] = call[of_step]
        rules["time"] = steps["time"]
        rules["rulenum"] = steps["rulenum"]
        rules["seq"] = np.arange(len(steps)) - np.repeat(np.cumsum(per_call) - per_call, per_call)
        rules["match"] = np.where(passed[step], nft_trace.RETURN, steps["kind"])
        rules["table"] = tables[steps["place"]]
        rules["chain"] = chains[steps["place"]]

        entries = np.zeros(count, record.ENTRY_DTYPE)
        entries["call"] = call
        entries["time"] = heads["time"]
        entries["skb"] = heads["journey"]
        entries["mark"] = heads["mark"]
        entries["in_ifindex"] = heads["iif"]
        entries["out_ifindex"] = heads["oif"]
        entries["family"] = heads["family"]
        entries["hook"] = heads["hook"]
        entries["table"] = tables[heads["place"]]
        # Rules that were replaced meanwhile are not told one from the other.
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
        entries["tables"] = self._named["family"][heads["place"]]
        entries["trace_id"] = heads["id"]
        for name in (heads.dtype.names or ())[len(EVENT.names or ()) :]:
            entries[name] = heads[name]
        for family, ethertype in _ETHERTYPES.items():
            entries["protocol"][heads["family"] == family] = ethertype

        exits = np.zeros(count, record.EXIT_DTYPE)
        exits["call"] = call
        exits["time"] = lasts["time"]
        exits["skb"] = entries["skb"]
        exits["mark"] = heads["mark"]
        verdict = lasts["verdict"].copy()
        if self._vague:
            verdict[~over] = UNTOLD
            over = np.ones(count, bool)
        exits["verdict"] = verdict.astype(np.uint32)
        untold = verdict == UNTOLD
        exits["flags"][untold] = record.EXIT_F_UNTOLD
        exits["rules"] = per_call
        if over.all():
            return Calls(entries, exits, rules, heads["priority"], entries[:0])
        self.incomplete += int((~over).sum())
        return Calls(entries[over], exits[over], rules, heads["priority"][over], entries[~over])

    def _look_at_places(self) -> None:
        places = self._places.all[len(self._named) :]
        if not places:
            return
        named = np.zeros(len(places), _NAMED)
        named["table"] = [short(place.table) for place in places]
        named["chain"] = [short(place.chain) for place in places]
        named["family"] = [place.family for place in places]
        # Each table's own.
        named["number"] = [
            self._tables.setdefault((place.family, place.table), len(self._tables))
            for place in places
        ]
        self._named = np.concatenate([self._named, named])


def _find_heads(events: Array, first: Array) -> None:
    """Where another table begins: every line has a packet, but none says that it is the first."""
    events["head"] = first
    events["head"][1:] |= events["last"][:-1]
    for name in ("hook", "priority"):
        events["head"][1:] |= events[name][1:] != events[name][:-1]


def short(name: bytes) -> bytes:
    """A name as records have it, in 31 bytes: a longer one cut, and told apart by a number."""
    if len(name) <= record.NAME_LEN - 1:
        return name
    number = 0
    for byte in name:
        number = (number * 31 + byte) & 0xFFFF
    # Not in the middle of a character.
    return name[: record.NAME_LEN - 6].decode("utf-8", "ignore").encode() + b"~%04x" % number


def packet_length(packets: Array, caplen: Array) -> Array:
    """uint32, shape (n,): what the IP header says; what was captured where it says nothing."""
    high, low = packets[:, 2:6:2].astype(np.uint32), packets[:, 3:6:2].astype(np.uint32)
    words = high << 8 | low
    version = packets[:, 0] >> 4
    length = np.select([version == 4, version == 6], [words[:, 0], words[:, 1] + 40], 0)
    told: Array = np.maximum(length, caplen).astype(np.uint32)
    return told


def in_order(calls: list[Calls]) -> tuple[list[Array], Array]:
    """Entries, rules, exits of all, the calls of a journey in the order of their chains.

    And the priority of each entry's chain.

    The kernel calls the chains of a hook by priority, and tells of nftables' and of
    legacy ones by different ways, so that they come at times that say nothing about
    it: each journey's times are given to its calls in the right order.
    """
    entries = np.concatenate([one.entries for one in calls])
    exits = np.concatenate([one.exits for one in calls])
    rules = np.concatenate([one.rules for one in calls])
    priority = np.concatenate([one.priority for one in calls])
    cut = np.concatenate([one.cut for one in calls])
    place = np.lexsort((priority, entries["hook"], entries["skb"]))
    entries, exits, priority = entries[place], exits[place], priority[place]
    if len(entries):
        journeys = entries["skb"]
        times = entries["time"][np.lexsort((entries["time"], journeys))]
        first = np.append(True, journeys[1:] != journeys[:-1])
        start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        # A moment apart, so that the order stays.
        entries["time"] = times + (np.arange(len(first)) - start).astype(np.uint64)
        exits["time"] = np.maximum(exits["time"], entries["time"])
        order = np.argsort(entries["time"], kind="stable")
        entries, exits, priority = entries[order], exits[order], priority[order]
    if len(cut):
        entries = np.concatenate([entries, cut])
        priority = np.concatenate([priority, np.zeros(len(cut), np.int32)])
    return [plain(entries), plain(rules), plain(exits)], priority


def plain(records: Array) -> Array:
    """The same, of the very layout of the stream: numpy turns ports round where it joins."""
    for dtype in record.DTYPES:
        if records.dtype.names == dtype.names:
            return records if records.dtype == dtype else records.astype(dtype)
    return records
