# SPDX-License-Identifier: GPL-2.0-only
"""One traced network namespace: its sockets, its flip table, its rulesets.

It is made, armed and changed by the one thread that may enter namespaces, and read by
the engine's.  Its sockets keep the namespace alive, so that it must be closed as soon
as it has no other user.  Long because everything here lives as long as the namespace.
Must not write a stream, and must not know the engine.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from typing import Final

import numpy as np

from ipttrace.capture import netns
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.nft import Compiled, matches
from ipttrace.capture.netlink.arrival import Arrivals
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import CallMaker, Calls
from ipttrace.capture.netlink.changes import NftChange
from ipttrace.capture.netlink.conntrack_table import ConntrackTable
from ipttrace.capture.netlink.context import RunContext
from ipttrace.capture.netlink.events import (
    EVENT,
    TABLE_PREFIX,
    ChainRegistry,
    packet_length,
)
from ipttrace.capture.netlink.journeys import NftJourneys
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.legacy.logger import silent
from ipttrace.capture.netlink.legacy.rules import LegacyRules
from ipttrace.capture.netlink.legacy_timeline import LegacyTimeline
from ipttrace.capture.netlink.legacy_trace import LegacyTrace
from ipttrace.capture.netlink.nft.decode import NFNLGRP_NFTABLES, NFNLGRP_NFTRACE, NftTraceDecoder
from ipttrace.capture.netlink.nft.devices import DeviceFlips
from ipttrace.capture.netlink.nft.dump import Dump, Snapshot
from ipttrace.capture.netlink.nft.generations import Generations
from ipttrace.capture.netlink.nft.rewrites import ALL
from ipttrace.capture.netlink.nft.stale import remove_stale
from ipttrace.capture.netlink.nft.table import FlipTable
from ipttrace.capture.netlink.quiet import quietest, span
from ipttrace.capture.netlink.reader import Mailbox
from ipttrace.netfilter import (
    NFPROTO_ARP,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFPROTO_NETDEV,
    NFT_FAMILIES,
)
from ipttrace.stream import record
from ipttrace.text import clean

# Batches that are decoded at once.
_AT_ONCE: Final = 64
# Events further apart, ns, may be taken at different times.
_GAP: Final = 500_000
_FILTER_BYTES: Final = 128  # of a packet, as `matches` takes them
# How long packets of a family without rules are flipped, s: rules that are removed and
# loaded again find the flip table installed.
_KEEP: Final = 10.0
# Of a packet's devices, as fields of an entry record have them.
SIDES: Final = ("in", "out", "physin", "physout")
_MOST_WARNINGS: Final = 64  # of one namespace


class TracedNamespace:
    """One namespace with a flip table and sockets, disarmed until `arm`."""

    def __init__(self, path: str, inode: int, room: int, context: RunContext) -> None:
        """`path` leads to the namespace `inode`; `room`: bytes for messages in the kernel.

        Raises CaptureError if it cannot be traced, OSError if it cannot be entered.
        """
        self.path = path
        self.inode = inode
        self.undecided = 0  # packets whose captured headers do not decide whether EXPR matches
        # If there are legacy tables to trace: their rules, and unless another engine sees their
        # packets, what they log.
        self.timeline: LegacyTimeline | None = None
        self.legacy: LegacyTrace | None = None
        self._context = context
        self._want_legacy = context.legacy
        self._untraced_legacy = False  # there are legacy tables, which this engine does not trace
        self._silenced = False  # what legacy tables would log is kept from the kernel's log
        self._armed = False
        self._warned: set[str] = set()
        self._unneeded: dict[int, float] = {}  # NFPROTO_* flipped without need → since when, s
        self._room = room
        self._legacy_failure = ""  # the newest reason in a note why legacy rules are unknown
        self._filter: Compiled | None = None
        self._devices: dict[int, bytes] = {}  # index → name
        self._early: Snapshot | None = None  # of a generation that is not announced yet
        self._held: deque[Array] = deque()  # events, EVENT, not yet taken
        self._stack = contextlib.ExitStack()
        with self._inside(), contextlib.ExitStack() as stack:
            for name in remove_stale():
                context.warn(f"removed nft table {name}, left by a run that was killed")
            self._dump = stack.enter_context(contextlib.closing(Dump()))
            self._conntrack = stack.enter_context(contextlib.closing(ConntrackTable()))
            try:
                self.mailbox = stack.enter_context(contextlib.closing(Mailbox(room)))
                if context.listen:
                    self.mailbox.join(NFNLGRP_NFTRACE)
                self.mailbox.join(NFNLGRP_NFTABLES)
            except OSError as error:
                raise CaptureError(f"cannot open the netfilter netlink socket: {error}") from error
            snapshot = self._known = self._dump.snapshot()  # the newest that could be read
            table = FlipTable(exact=context.beside_module)
            self._flip_table = stack.enter_context(contextlib.closing(table))
            self._at_devices = DeviceFlips(table)
            first = context.next_generation()
            self._decoder = NftTraceDecoder(snapshot.genid)
            self._decoder.reports_conntrack |= not context.listen
            self._generations = Generations(snapshot, first)
            chains = self._decoder.chains
            self.journeys = NftJourneys(
                chains, self._flip_table.name, context.numbers, self.matches
            )
            self._arrivals = Arrivals()
            self._calls = CallMaker(chains, context.numbers, context.names, record.SOURCE_NFT)
            self._stack = stack.pop_all()
        self._report_blinding()
        context.changes.put(NftChange(path, inode, snapshot, first))

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return netns.inside(self.path, self.inode)

    # -- for the thread that may enter namespaces

    def arm(self, compiled: Compiled) -> None:
        """Flips packets that match `compiled` from now on.  Raises CaptureError, OSError."""
        self._filter = compiled
        # Before any flip: legacy rules would write flipped packets to the kernel's log.
        self.find_legacy()
        self._armed = True
        self.update_flips()

    def update_flips(self) -> None:
        """Flips packets of the families that have rules to trace, as far as they are known.

        Touches only families that differ; one without rules is flipped a little longer.
        If a legacy table may drop a packet in the last of its chains, the flip table's chain
        behind it shows the packets that were not dropped.  Does nothing if disarmed.
        Raises CaptureError.
        """
        if not self._armed or self._filter is None or not self._context.flips:
            return
        wanted, installed = self._families(), self._flip_table.installed
        if missing := wanted - installed:
            self._flip_table.carry(self._carried)
            self._flip_table.install(self._filter, sorted(missing))
        elif installed and self._carried < 0 and self._flip_table.carries:
            self.filter(self._filter)
        if why := self._at_devices.update(self._filter, self._known):
            self._warn_once(f"packets at the ingress of devices of {self.title}: {why}")
        now = time.monotonic()
        unneeded = installed - wanted - {NFPROTO_NETDEV}
        self._unneeded = {one: self._unneeded.get(one, now) for one in unneeded}
        over = [one for one, since in self._unneeded.items() if now > since + _KEEP]
        self._flip_table.remove(over)
        self.journeys.exact = self._flip_table.exact
        if self.legacy is not None and self.legacy.timeline.may_drop_last:
            self._flip_table.report_passed()

    def _restore_flips(self, snapshot: Snapshot) -> None:
        """Lets `update_flips` make a flip table that another program deleted; of `snapshot`."""
        name = self._flip_table.name.decode()
        if self._flip_table.forget_deleted(snapshot.tables):
            self._warn_once(f"another program deleted the nft table {name}: creating it again")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(text)
            self._context.warn(text)

    def _families(self) -> set[int]:
        # A ruleset that could not be read in one piece adds families, and removes none.
        prefix = TABLE_PREFIX.decode()
        ruled = {
            family
            for snapshot in (self._known, self._dump.seen or self._known)
            for (family, table, _), chain in snapshot.chains.items()
            if chain.hook is not None and not table.startswith(prefix)
        }
        found = ruled & {NFPROTO_ARP, NFPROTO_BRIDGE}
        ip_families = {NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV}
        # Legacy tables need flips even if nftables has no chain for IP; and at the egress of
        # devices, packets are met that were flipped before.
        if self._want_legacy or self.timeline is not None or ruled & ip_families:
            found.add(NFPROTO_INET)
        return found

    def find_legacy(self) -> bool:
        """Begins to trace legacy tables if there are any; returns whether it did.

        Raises OSError if the namespace cannot be entered, CaptureError if tables of the
        initial namespace cannot be traced.
        """
        if self.timeline is not None:
            return False
        with self._inside():
            self._untraced_legacy = bool(LegacyRules.existing())
        if not self._untraced_legacy:
            return False
        if not self._want_legacy:
            if not self._context.listen and not self._context.beside_module:
                self._silence_legacy()
            return False
        try:
            if self._context.listen:
                self._trace_legacy()
            else:
                self._silence_legacy()
                with self._inside():
                    self.timeline = LegacyTimeline(
                        self.path, self.inode, self._context, waiting=lambda: True
                    )
                self._stack.callback(self.timeline.close)
        except (CaptureError, OSError) as error:
            self._want_legacy = False
            if self.inode == netns.initial():
                # Its flipped packets would go to the kernel's log, a line for each rule.
                raise CaptureError(f"legacy rules are not traced: {error}") from error
            self._context.warn(f"legacy rules of {self.title} are not traced: {error}")
            return False
        self._warn_of_legacy(self.timeline.rules.failed if self.timeline else "")
        return True

    def _trace_legacy(self) -> None:
        # Not inside: its guard process starts in the calling thread's namespace.
        setting = self._context.log_setting()
        with self._inside(), self._context.paused(self.mailbox):
            self.legacy = LegacyTrace(
                self.path, self.inode, self.mailbox, self._context, setting, self.matches
            )
        self.mailbox.grow(self._room)
        self._stack.enter_context(contextlib.closing(self.legacy))
        self.timeline = self.legacy.timeline

    def _silence_legacy(self) -> None:
        """Keeps legacy rules from writing flipped packets to the kernel's log.

        There is no logger, or nfnetlink_log, where nobody reads them.  Raises OSError if the
        namespace cannot be entered, CaptureError.
        """
        if self._silenced:
            return
        setting = self._context.log_setting()
        logger = silent(self.inode)
        with self._inside(), self._context.paused(self.mailbox):
            # Refused if another program would read them.
            nflog.bind(self.mailbox)
            nflog.unbind(self.mailbox)
            self._stack.callback(setting.restore, self.inode)
            setting.take(self.path, self.inode, set_to=logger)
        self._silenced = True
        if not self._want_legacy:
            self._context.warn(
                f"legacy tables of {self.title} are not traced by the bpf engine:"
                " --engine netlink traces them"
            )

    def _warn_of_legacy(self, failed: str) -> None:
        if failed and failed != self._legacy_failure:
            self._context.warn(f"legacy rules of {self.title} are unknown: {failed}")
        self._legacy_failure = failed

    def filter(self, compiled: Compiled) -> None:
        """Replaces the filter.  Raises CaptureError."""
        self._flip_table.carry(self._carried)
        self._flip_table.replace(compiled)
        self._filter = compiled
        self.journeys.exact = self._flip_table.exact

    @property
    def _carried(self) -> int:
        # The module knows no packet that EXPR does not match: legacy tables would log it.
        silent = self._context.beside_module and self._untraced_legacy
        return -1 if silent else self._context.carried

    @property
    def exact(self) -> bool:
        """Whether only packets are flipped that EXPR matches."""
        return self.journeys.exact

    def disarm(self) -> None:
        """No packet is flipped after this.  Raises CaptureError."""
        self._armed = False
        self._flip_table.remove()

    def close(self) -> None:
        """Removes the flip table, restores the logger, and releases the namespace."""
        self._stack.close()

    def flipped(self) -> int:
        """Packets flipped, as the kernel counts them.  Raises CaptureError."""
        return self._flip_table.counted()[0]

    def rules_are_due(self, rows_wait: bool) -> bool:
        """Whether `update_rules` may find something; for the engine's thread.

        `rows_wait`: for legacy rules, which are looked at less often if none do.
        """
        timeline = self.timeline
        return bool(self._decoder.changes) or (
            timeline is not None and timeline.rules.is_due(rows_wait=rows_wait)
        )

    def update_rules(self, *, force: bool) -> None:
        """Reads rules that have changed; `force`: even legacy rules that are not due.

        Raises FileNotFoundError, ProcessLookupError if `path` no longer leads here.
        """
        changed = self._update_nft()
        if self.timeline is not None:
            with self._inside():
                self.timeline.path = self.path
                legacy_changed = self.timeline.update_rules(force=force)
            self._warn_of_legacy(self.timeline.rules.failed)
            changed = changed or legacy_changed
        if changed:
            self.update_flips()

    def _update_nft(self) -> bool:
        changes, self._decoder.changes = self._decoder.changes, []
        if not changes:
            return False
        snapshot: Snapshot | None
        try:
            snapshot = self._dump.snapshot()
        except CaptureError as error:
            self._warn_once(f"rules of {self.title}: {error}")
            snapshot = None
        else:
            self._known = snapshot
            self._restore_flips(snapshot)
        self._report_blinding()
        numbers = {}
        for genid, announced in changes:
            numbers[genid] = self._context.next_generation()
            self._generations.change(genid, announced, numbers[genid], snapshot)
        # Rules that change fast have changed again before the snapshot: it is reported once its
        # generation is announced.
        for one in (self._early, snapshot):
            if one is not None and one.genid in numbers:
                change = NftChange(self.path, self.inode, one, numbers[one.genid])
                self._context.changes.put(change)
        early = snapshot is not None and snapshot.genid not in numbers
        self._early = snapshot if early else None
        return True

    def _report_blinding(self) -> None:
        """Warns about rules, of any attempt to read them, that end the tracing of packets."""
        for family, table, chain in sorted((self._dump.seen or self._known).blinding):
            where = f"{NFT_FAMILIES.get(family, str(family))} {clean(table, 64)}"
            self._warn_once(
                f"table {where}, chain {clean(chain, 64)} of {self.title} has a rule with meta "
                "nftrace set: packets for which it sets 0 are not traced any further"
            )

    def look_up(self, indices: set[int]) -> None:
        """Looks up the names of devices; one that is gone is called if<index>."""
        with contextlib.suppress(OSError), self._inside():
            found = {index: name.encode()[:15] for index, name in socket.if_nameindex()}
            self._devices.update(found)
        for index in indices - self._devices.keys():
            self._devices[index] = f"if{index}".encode()

    @property
    def title(self) -> str:
        """What messages call it."""
        return netns.title(self.path, self.inode)

    # -- for the engine's thread

    def receive(self, most: int, most_held: int) -> int:
        """Decodes messages that were read; returns their bytes.

        About `most` bytes, and none as long as the events that are not yet taken have more than
        `most_held` bytes.
        """
        size = 0
        held = [self._held] if self.legacy is None else [self._held, self.legacy.held]
        full = any(sum(part.nbytes for part in parts) > most_held for parts in held)
        batches = [] if full else self.mailbox.take(most)
        for at in range(0, len(batches), _AT_ONCE):
            some = batches[at : at + _AT_ONCE]
            size += sum(batch.data.nbytes for batch in some)
            events = self._decoder.decode(*some)
            gaps = np.flatnonzero(np.diff(events["time"].astype(np.int64)) > _GAP) + 1
            self._held.extend(part for part in np.split(events, gaps) if len(part))
            if self.legacy is not None:
                self.legacy.receive(*some)
        return size

    @property
    def chains(self) -> ChainRegistry:
        """The chains by number, as events have them."""
        return self._decoder.chains

    def locate(self, events: Array, after: Array, tables: Array) -> None:
        """Fills in what the rulesets determine of events that another engine saw.

        `events`: EVENT, in the order of their packets' calls; `after`, `tables`: see
        Generations.locate; also see NftTraceDecoder.mark_invalid.
        """
        self._generations.locate(events, self.chains, after, tables)
        self._decoder.mark_invalid(events)

    @property
    def oldest(self) -> int | None:
        """When the oldest message not yet decoded was read, CLOCK_MONOTONIC ns, or None.

        Events read later must not be taken before it.
        """
        return self.mailbox.oldest

    @property
    def rules_checked(self) -> int:
        """Which legacy rules packets met before is known, CLOCK_MONOTONIC ns."""
        return 1 << 63 if self.timeline is None else self.timeline.rules.checked

    def freeze_rules(self) -> None:
        """Takes the rules known now for the last: the namespace cannot be entered any more."""
        if self.timeline is not None:
            self.timeline.rules.checked = 1 << 63

    @property
    def lost(self) -> int:
        """Messages for which the kernel had no room, or that could not be decoded."""
        missing = 0 if self.legacy is None else self.legacy.missing
        return max(self.mailbox.drops(), missing) + self._decoder.unread

    @property
    def broken(self) -> int:
        """Calls of nftables with events missing, for whatever reason."""
        return self._calls.incomplete

    @property
    def refused(self) -> int:
        """Calls of packets that others trace and EXPR does not match."""
        legacy = 0 if self.legacy is None else self.legacy.journeys.refused
        return self.journeys.refused + legacy

    def take(self, before: int) -> list[Calls]:
        """The calls that are finished, by events read before `before`, CLOCK_MONOTONIC ns."""
        if not self._context.listen:
            return []
        if self.legacy is not None:
            before = min(before, self.rules_checked)
            if self._armed:
                spans = [*map(span, self._held), *map(span, self.legacy.held)]
                before = quietest(spans, before)
        ready = []
        while self._held and int(self._held[0]["time"][0]) < before:
            ready.append(self._held.popleft())
        events = np.concatenate(ready) if ready else np.zeros(0, EVENT)
        matching = self.journeys.assign(events)
        if self._untraced_legacy if self.timeline is None else self.timeline.sets_marks:
            # Whether the chain's rule or a legacy table before it changed the mark is unknown.
            matching["mark_known"] &= matching["mark"] == matching["mark_before"]
        self._generations.locate(matching, self._decoder.chains)
        self._decoder.mark_invalid(matching)
        if self._generations.rewriting:
            others = self.timeline.rewrites if self.timeline else ALL * self._untraced_legacy
            nat = self._untraced_legacy or self._generations.translating
            changed = self._generations.rewritten(matching, self._decoder.chains)
            self._arrivals.restore(matching, self.journeys.flips, changed, others, nat=nat)
        # Later events may still be undecoded: they are not late.
        now = min(time.monotonic_ns(), before)
        found = [self._calls.feed(matching, now)]
        self._conntrack.fill(found[0].entries)
        if self.legacy is not None:
            self.legacy.add_reached(matching, self.journeys.passed)
            found.append(self.legacy.take(before, self.journeys.flips, now, more=self._armed))
        return found

    def matches(self, packets: Array, caplens: Array) -> Array:
        """See PacketFilter; packets whose headers do not decide it do not match."""
        count = len(packets)
        if self._filter is None or not self._filter.program or not count:
            return np.ones(count, bool)
        data = np.zeros((count, _FILTER_BYTES), np.uint8)
        data[:, : packets.shape[1]] = packets
        lengths = np.maximum(packet_length(packets, caplens), caplens)
        yes, unknown = matches(self._filter.program, data, caplens, lengths)
        self.undecided += int(unknown.sum())
        return yes & ~unknown

    def unnamed(self, indices: Array) -> set[int]:
        """Those of these device indices whose names have not been looked up."""
        return {int(one) for one in np.unique(indices) if one} - self._devices.keys()

    def name(self, entries: Array) -> None:
        """Fills in the names of devices, and the namespace's inode."""
        entries["netns"] = self.inode
        for side in SIDES:
            indices = entries[f"{side}_ifindex"]
            for index in np.unique(indices).tolist() if indices.any() else ():
                if index:
                    entries[side][indices == index] = self._devices.get(index, b"")
