# SPDX-License-Identifier: GPL-2.0-only
"""Traces the legacy tables of one namespace: from log messages to calls.

Sets the namespace's logger to nfnetlink_log, and restores it on close.  Must not write a
stream, and must not know the engine.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import CallMaker, Calls
from ipttrace.capture.netlink.context import RunContext
from ipttrace.capture.netlink.events import LEGACY_EVENT, LEGACY_FIELDS
from ipttrace.capture.netlink.journeys import PacketFilter
from ipttrace.capture.netlink.keys import packet_keys, tuples_before_nat
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.legacy_journeys import LegacyJourneys, chain_order
from ipttrace.capture.netlink.legacy_timeline import LegacyTimeline
from ipttrace.capture.netlink.reached import AFTER_ALL_CHAINS, Reached
from ipttrace.capture.netlink.reader import Batch, Mailbox
from ipttrace.netfilter import HOOKS, UNKNOWN_HOOK
from ipttrace.stream import record

_GAP: Final = 500_000  # events further apart, ns, may be taken at different times
_OUTPUT: Final = HOOKS.index("OUTPUT")
_KEY_BYTES: Final = 128  # of a packet, for its keys


class LegacyTrace:
    """The legacy tables of one namespace.

    `close` is for the thread inside the namespace, the rest is for the engine's.
    """

    def __init__(
        self,
        path: str,
        inode: int,
        mailbox: Mailbox,
        context: RunContext,
        setting: LogSetting,
        matches: PacketFilter,
    ) -> None:
        """Of the calling thread's namespace, `inode`, to which `path` leads.

        `mailbox`: of the namespace, that of nftables' messages: both then come in the order in
        which packets met chains and tables; `matches`: for packets without a flip.
        Raises CaptureError or OSError if legacy tables cannot be traced.
        """
        self._mailbox = mailbox
        self._decoder = nflog.NflogDecoder()
        self._last_seq = -1
        self.missing = 0  # messages lost, by their sequence numbers
        self.held: deque[Array] = deque()  # events, LEGACY_EVENT, not yet taken
        self._reached = Reached()  # by nftables' messages, with times in place of chains
        self._reached_legacy = Reached()  # by log messages
        self._passed = Reached()  # with _destined() in place of journeys
        self.foreign = 0  # messages that no trace caused: of other log rules
        with contextlib.ExitStack() as stack:
            nflog.bind(mailbox)
            stack.callback(nflog.unbind, mailbox)
            # The sooner the rules are compared behind a packet, the surer they are those it met.
            mailbox.wakes = True
            self.timeline = LegacyTimeline(path, inode, context, self._waiting)
            stack.callback(self.timeline.close)
            self._chains = self.timeline.chains
            stack.callback(setting.restore, inode)
            setting.take(path, inode)
            self.journeys = LegacyJourneys(context.numbers, matches, flips=context.flips)
            self._calls = CallMaker(
                self._chains,
                context.numbers,
                context.names,
                record.SOURCE_NFLOG,
                self._went_on,
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Restores the logger, and releases the namespace."""
        self._stack.close()

    def _waiting(self) -> bool:
        return bool(self.held) or self._mailbox.oldest is not None

    def receive(self, *batches: Batch) -> None:
        """Decodes messages that were read, as far as they are of legacy tables."""
        messages = self._decoder.decode(*batches)
        if not len(messages):
            return
        self.missing += nflog.missing(self._last_seq, messages)
        self._last_seq = int(messages["seq"][-1])
        traced = messages["match"] != nflog.NOT_TRACE
        self.foreign += int((~traced).sum())
        if traced.any():
            events = self._events(messages[traced])
            gaps = np.flatnonzero(np.diff(events["time"].astype(np.int64)) > _GAP) + 1
            self.held.extend(np.split(events, gaps))

    def _events(self, messages: Array) -> Array:
        """LOG_MESSAGE to LEGACY_EVENT, shape (n,), not yet located."""
        events = np.zeros(len(messages), LEGACY_EVENT)
        for name in LEGACY_FIELDS:
            if name != "flags":
                events[name] = messages[name]
        events["flags"] = np.where(messages["tracked"], record.F_CONNTRACK, 0)
        events["time"] = messages["time"]
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
        for some in (heads, passed):
            self._reached.add(some["journey"], some["time"], some["time"])
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
        found |= self._reached.later(journeys, heads["time"])
        # There REDIRECT gives the loopback address, and never drops; the others cannot be.
        found |= heads["hook"] == _OUTPUT
        # Fragments are flipped, and the packet that they make has no flip.
        alone = np.flatnonzero(~found & ~self.journeys.flipped(journeys))
        found[alone] = self._passed.later(_destined(heads[alone]), chains[alone])
        return found

    def take(self, before: int, flips: Array, now: int, *, more: bool) -> Calls:
        """The calls finished at `now`, by events read before `before` (CLOCK_MONOTONIC, ns).

        `before`: at most `timeline.rules.checked`; `flips`: NftJourneys.flips since the last
        call; `more`: packets may still be reported.
        """
        ready = []
        while self.held and int(self.held[0]["time"][0]) < before:
            if int(self.held[0]["time"][-1]) >= self.timeline.rules.checked:
                break
            ready.append(self.held.popleft())
        events = np.concatenate(ready) if ready else np.zeros(0, LEGACY_EVENT)
        moves, copied = self.timeline.locate(events)
        packets = events["packet"][:, :_KEY_BYTES]
        keys = packet_keys(packets, events["caplen"], *tuples_before_nat(events))
        flip_keys = packet_keys(flips["packet"], flips["caplen"])
        matching = self.journeys.assign(events, keys, flips, flip_keys, moves, copied)
        return self._calls.feed(matching, now, more=more)


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
