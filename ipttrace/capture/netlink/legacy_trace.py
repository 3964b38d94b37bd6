# SPDX-License-Identifier: GPL-2.0-only
"""Traces the legacy tables of one namespace: from log messages to calls.

Sets the namespace's logger to nfnetlink_log, and restores it on close.  Must not write a
stream, and must not know the engine.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import CallMaker, Calls
from ipttrace.capture.netlink.context import RunContext
from ipttrace.capture.netlink.events import (
    LEGACY_EVENT,
    LEGACY_FIELDS,
    POLICY,
    UNKNOWN_VERDICT,
    ChainKey,
    ChainRegistry,
)
from ipttrace.capture.netlink.journeys import LegacyJourneys, PacketFilter, chain_order
from ipttrace.capture.netlink.keys import packet_keys, tuples_before_nat
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.legacy.tables import (
    LegacyRules,
    Outcome,
    may_set_marks,
    outcome,
    priorities,
)
from ipttrace.capture.netlink.reached import AFTER_ALL_CHAINS, Reached
from ipttrace.capture.netlink.reader import Mailbox
from ipttrace.netfilter import HOOKS, UNKNOWN_HOOK
from ipttrace.stream import record

_GAP: Final = 500_000  # events further apart, ns, may be taken at different times
_MOST_CACHED: Final = 1 << 14
_OUTPUT: Final = HOOKS.index("OUTPUT")
_KEY_BYTES: Final = 128  # of a packet, for its keys


class LegacyTrace:
    """The legacy tables of one namespace.

    `close` and `update_rules` are for the thread inside the namespace, the rest is for the
    engine's.
    """

    def __init__(
        self,
        path: str,
        inode: int,
        room: int,
        context: RunContext,
        setting: LogSetting,
        matches: PacketFilter,
    ) -> None:
        """Of the calling thread's namespace, `inode`, to which `path` leads.

        `room`: bytes for messages in the kernel; `matches`: for packets without a flip.
        Raises CaptureError or OSError if legacy tables cannot be traced.
        """
        self._context = context
        self._chains = ChainRegistry()
        self._decoder = nflog.NflogDecoder()
        self._last_seq = -1
        self._missing = 0
        self.held: deque[Array] = deque()  # events, LEGACY_EVENT, not yet taken
        self._outcomes: dict[tuple[ChainKey, int, int, int, bool], Outcome] = {}
        self._reached = Reached()  # by nftables' messages
        self._reached_legacy = Reached()  # by log messages
        self._passed = Reached()  # with _destined() in place of journeys
        self.foreign = 0  # messages that no trace caused: of other log rules
        with contextlib.ExitStack() as stack:
            self.mailbox: Mailbox = stack.enter_context(contextlib.closing(nflog.new_mailbox(room)))
            nflog.bind(self.mailbox)
            self.rules = stack.enter_context(contextlib.closing(LegacyRules()))
            self.rules.check(force=True)
            self.sets_marks = self._may_set_marks()  # may a rule, now or earlier?
            self.generation = context.next_generation()
            stack.callback(setting.restore, inode)
            setting.take(path, inode)
            self.journeys = LegacyJourneys(context.numbers, matches)
            self._calls = CallMaker(
                self._chains,
                context.numbers,
                context.names,
                record.SOURCE_NFLOG,
                self._went_on,
            )
            self._stack = stack.pop_all()

    def _may_set_marks(self) -> bool:
        return bool(self.rules.failed) or may_set_marks(self.rules.tables)

    def close(self) -> None:
        """Restores the logger and closes the sockets, which hold the namespace."""
        self._stack.close()

    def update_rules(self, *, force: bool = False) -> bool:
        """Whether the rules changed since the last check, if one is due or `force`."""
        if not self.rules.check(force=force):
            return False
        # Messages of the old rules may still be unread: they must not count as of the new.
        self._context.flush()
        self.rules.changed = time.monotonic_ns()
        self.generation = self._context.next_generation()
        self._outcomes.clear()
        self.sets_marks |= self._may_set_marks()
        return True

    @property
    def lost(self) -> int:
        """Messages lost, by their sequence numbers or by the kernel's count."""
        return max(self._missing, self.mailbox.drops())

    def receive(self, most: int, most_held: int) -> int:
        """Decodes messages that were read; see TracedNamespace.receive."""
        if sum(part.nbytes for part in self.held) > most_held:
            return 0
        batches = self.mailbox.take(most)
        size = sum(batch.data.nbytes for batch in batches)
        if batches:
            messages = self._decoder.decode(*batches)
            if len(messages):
                self._missing += nflog.missing(self._last_seq, messages)
                self._last_seq = int(messages["seq"][-1])
                traced = messages["match"] != nflog.NOT_TRACE
                self.foreign += int((~traced).sum())
                if traced.any():
                    events = self._events(messages[traced])
                    gaps = np.flatnonzero(np.diff(events["time"].astype(np.int64)) > _GAP) + 1
                    self.held.extend(np.split(events, gaps))
        return size

    def _events(self, messages: Array) -> Array:
        """LOG_MESSAGE to LEGACY_EVENT, shape (n,), not yet located."""
        events = np.zeros(len(messages), LEGACY_EVENT)
        for name in LEGACY_FIELDS:
            if name != "flags":
                events[name] = messages[name]
        events["flags"] = np.where(messages["tracked"], record.F_CONNTRACK, 0)
        events["time"] = messages["time"] + np.arange(len(messages), dtype=np.uint64)
        events["kind"] = messages["match"]
        events["hook"] = np.minimum(messages["hook"], 0xFF)
        events["iif"], events["oif"] = messages["in_ifindex"], messages["out_ifindex"]
        # The kernel logs a rule before its target changes anything.
        events["mark_before"], events["mark_known"] = messages["mark"], True
        for name in ("family", "mark", "rulenum", "packet", "caplen", "mac", "mac_len"):
            events[name] = messages[name]
        names = [np.ascontiguousarray(messages[name]) for name in ("table", "chain")]
        events["chain"] = self._chains.numbers(
            np.zeros(len(messages), np.uint8),
            *(name.view(np.uint8).reshape(len(messages), -1) for name in names),
        )
        return events

    def add_reached(self, events: Array, passed: Array) -> None:
        """What nftables reported of packets, before `take` returns their calls.

        `events`: EVENT, located; `passed`: of the chain PASSED, EVENT.
        """
        heads = events[events["head"] & (events["hook"] != UNKNOWN_HOOK)]
        chains = chain_order(heads["hook"], heads["priority"])
        self._reached.add(heads["journey"], chains, heads["time"])
        self._reached.add(passed["journey"], AFTER_ALL_CHAINS, passed["time"])
        passed = passed[passed["head"]]
        self._passed.add(_destined(passed), AFTER_ALL_CHAINS, passed["time"])

    def _went_on(self, heads: Array) -> Array:
        """The calls whose packets met a later chain: bool, shape (n,).

        `heads`: their first events, LEGACY_EVENT, shape (n,).
        """
        chains = chain_order(heads["hook"], heads["priority"])
        journeys = heads["journey"]
        self._reached_legacy.add(journeys, chains, heads["time"])
        found = self._reached_legacy.later(journeys, chains) & ~self.journeys.doubtful(journeys)
        found |= self._reached.later(journeys, chains)
        # There REDIRECT gives the loopback address, and never drops; the others cannot be.
        found |= heads["hook"] == _OUTPUT
        # Fragments are flipped, and the packet that they make has no flip.
        alone = np.flatnonzero(~found & ~self.journeys.flipped(journeys))
        found[alone] = self._passed.later(_destined(heads[alone]), chains[alone])
        return found

    def take(self, before: int, flips: Array, now: int, *, more: bool) -> Calls:
        """The calls finished at `now`, by events read before `before` (CLOCK_MONOTONIC, ns).

        `before`: at most `rules.checked`; `flips`: NftJourneys.flips since the last call;
        `more`: packets may still be reported.
        """
        ready = []
        while self.held and int(self.held[0]["time"][0]) < before:
            ready.append(self.held.popleft())
        events = np.concatenate(ready) if ready else np.zeros(0, LEGACY_EVENT)
        moves = self._locate(events)
        packets = events["packet"][:, :_KEY_BYTES]
        keys = packet_keys(packets, events["caplen"], *tuples_before_nat(events))
        flip_keys = packet_keys(flips["packet"], flips["caplen"])
        matching = self.journeys.assign(events, keys, flips, flip_keys, moves)
        return self._calls.feed(matching, now, more=more)

    def _locate(self, events: Array) -> Array:
        """Fills in `kind`, `verdict`, `last`, `ruleset` and `priority`.

        Returns Outcome.moves of each event, bool, shape (n,).
        """
        if not len(events):
            return np.zeros(0, bool)
        # A change is seen some time after it took effect: until then, the event may be of
        # the rules before or after it.
        unsure = events["time"] < self.rules.changed
        key = np.zeros(len(events), [("chain", "u4"), ("rulenum", "u4"), ("more", "u8")])
        key["chain"], key["rulenum"] = events["chain"], events["rulenum"]
        key["more"] = (
            events["kind"].astype(np.uint64)
            | events["family"].astype(np.uint64) << np.uint64(8)
            | unsure.astype(np.uint64) << np.uint64(16)
        )
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        if len(self._outcomes) > _MOST_CACHED:
            self._outcomes.clear()
        found = np.array(
            [
                self._outcome(
                    self._chains.chains[int(event["chain"])],
                    int(event["kind"]),
                    int(event["rulenum"]),
                    int(event["family"]),
                    bool(unsure[at]),
                )
                for at, event in zip(first.tolist(), events[first], strict=True)
            ],
            np.int64,
        ).reshape(-1, 3)[inverse]
        events["kind"], events["verdict"] = found[:, 0], found[:, 1]
        events["last"] = (found[:, 1] >= 0) & (found[:, 1] != UNKNOWN_VERDICT)
        events["last"] |= events["kind"] == POLICY
        events["ruleset"] = np.where(unsure, 0, self.generation)
        tables = [chain.table for chain in self._chains.chains]
        events["priority"] = priorities(tables, events["chain"], events["hook"])
        moves: Array = found[:, 2] != 0
        return moves

    def _outcome(
        self, chain: ChainKey, match: int, number: int, family: int, unsure: bool
    ) -> Outcome:
        key = (chain, match, number, family, unsure)
        if key not in self._outcomes:
            table, name = (
                part.decode("utf-8", "backslashreplace") for part in (chain.table, chain.chain)
            )
            now = outcome(self.rules.tables, family, table, name, match, number)
            if unsure:
                then = outcome(self.rules.earlier, family, table, name, match, number)
                if now != then:
                    same = now.match == then.match
                    now = Outcome(now.match if same else match, UNKNOWN_VERDICT)
            self._outcomes[key] = now
        return self._outcomes[key]


def _destined(events: Array) -> Array:
    """Hashes of Keys.invariant, destination and device: uint64, shape (n,).

    MASQUERADE drops all packets with the same ones, or none.  `events`: EVENT or LEGACY_EVENT.
    """
    keys = packet_keys(events["packet"][:, :_KEY_BYTES], events["caplen"])
    words = np.ascontiguousarray(events["packet"][:, :40]).view("<u8")
    six = events["packet"][:, 0] >> 4 == 6
    destination = np.where(six, words[:, 3] ^ words[:, 4], words[:, 2] & np.uint64(0xFFFFFFFF))
    found: Array = keys.invariant ^ destination * np.uint64(31) + events["oif"]
    return found
