# SPDX-License-Identifier: GPL-2.0-only
"""One traced network namespace: its sockets, its flipping table, its rulesets.

Made, and told to do anything in the namespace, by one thread that may enter it;
read by the engine.  The sockets hold the namespace, so that it must be left as
soon as it has no other user.  Must not write a stream.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.nft import Compiled, matches
from ipttrace.capture.netns import inside
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import CallMaker, Calls, Numbers, packet_length
from ipttrace.capture.netlink.journeys import OWN, NftJourneys
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.legacy.tables import LegacyRules
from ipttrace.capture.netlink.legacy_trace import LegacyTrace
from ipttrace.capture.netlink.nft.decode import EVENT, NFNLGRP_NFTABLES, NFNLGRP_NFTRACE, Decoder
from ipttrace.capture.netlink.nft.dump import Dump, Snapshot
from ipttrace.capture.netlink.nft.places import Generations
from ipttrace.capture.netlink.nft.table import FlipTable, clean_stale
from ipttrace.capture.netlink.reader import Mailbox
from ipttrace.capture.rules.netlink_watch import Change, LegacyChange
from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
from ipttrace.stream import record

Note = Callable[[str, str], None]

# Batches that are decoded together, and how far apart what is handed out together may be, ns.
_AT_ONCE: Final = 64
_STRETCH: Final = 500_000
# How much longer events may be held so that those of a packet stay together, ns.
_SLACK: Final = 10_000_000
_HEADERS: Final = 128  # bytes of a packet as `matches` takes them


class Space:
    """What is traced in one namespace.  Raises CaptureError when it cannot be."""

    def __init__(
        self,
        path: str,
        inode: int,
        room: int,
        numbers: Numbers,
        number: Callable[[], int],
        changed: Callable[[Change | LegacyChange], None],
        note: Note,
        legacy: Callable[[], LogSetting] | None,
    ) -> None:
        """`path` leads to the namespace `inode`; `room`: bytes for messages in the kernel;
        `number()`: the stream's next ruleset generation; `changed(change)`: there is
        another ruleset; `legacy`: what takes log settings, to be made only where there are
        legacy tables, None where these are not to be traced."""
        self.path = path
        self.inode = inode
        self.undecided = 0  # packets whose headers do not tell whether they were asked for
        self._number = number
        self._changed = changed
        self._note = note
        self._legacy = legacy
        self._armed = False
        self._installed: set[int] = set()  # families where packets are flipped
        self._room = room
        self._numbers = numbers
        self.lines: LegacyTrace | None = None  # where legacy tables are traced
        self._failed = ""  # why their rules are not known, as it was said
        self._filter: Compiled | None = None
        self._names: dict[int, bytes] = {}
        self._held: deque[Array] = deque()
        self._stack = contextlib.ExitStack()
        with self._inside(), contextlib.ExitStack() as stack:
            for name in clean_stale():
                note("warn", f"removed nft table {name}, left by a run that was killed")
            self._dump = stack.enter_context(contextlib.closing(Dump()))
            try:
                self.box = stack.enter_context(contextlib.closing(Mailbox(room)))
                self.box.join(NFNLGRP_NFTRACE)
                self.box.join(NFNLGRP_NFTABLES)
            except OSError as error:
                raise CaptureError(f"netfilter's netlink cannot be listened to: {error}") from error
            snapshot = self._dump.snapshot()
            self.table = stack.enter_context(contextlib.closing(FlipTable()))
            first = number()
            self._decoder = Decoder(snapshot.genid)
            self._generations = Generations(snapshot, first)
            places = self._decoder.places
            self.journeys = NftJourneys(places, self.table.name, numbers, self._accept)
            self._calls = CallMaker(places, numbers, record.SOURCE_NFT)
            self._stack = stack.pop_all()
        changed(Change(path, inode, snapshot, first))

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return inside(self.path, self.inode)

    # -- by the thread that may enter

    def arm(self, compiled: Compiled) -> None:
        """Flips from now on what `compiled` takes.  Raises CaptureError."""
        self._use(compiled)
        self._armed = True
        # First of all: a flipped packet must not fill the kernel's own log.
        self.find_legacy()
        self._install()

    def _install(self) -> None:
        """Flips in the families that have something to tell."""
        families = self._families()
        if families != self._installed and self._filter is not None:
            if self._installed:
                self.table.remove()
            self._installed = set()
            if families:
                self.table.install(self._filter, sorted(families))
            self._installed = families

    def _families(self) -> set[int]:
        snapshot = self._generations.newest
        ruled = set()
        if snapshot is not None:
            ruled = {
                family
                for (family, table, _), chain in snapshot.chains.items()
                if chain.hook is not None and not table.encode(errors="replace").startswith(OWN)
            }
        found = ruled & {NFPROTO_ARP, NFPROTO_BRIDGE}
        # Packets that no chain of nftables meets are flipped for legacy tables only.
        if (
            self._legacy is not None
            or self.lines is not None
            or ruled & {NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6}
        ):
            found.add(NFPROTO_INET)
        return found

    def find_legacy(self) -> bool:
        """Traces legacy tables from now on, where there are any.  Raises CaptureError."""
        if self._legacy is None or self.lines is not None:
            return False
        with self._inside():
            if not LegacyRules.there():
                return False
        try:
            setting = self._legacy()
            with self._inside():
                self.lines = LegacyTrace(
                    self.path,
                    self.inode,
                    self._room,
                    self._numbers,
                    self._number,
                    self._accept,
                    setting,
                )
        except (CaptureError, OSError) as error:
            self._legacy = None
            if self.inode == _init_inode():
                # There the kernel would write a line to its log for each rule and packet.
                raise CaptureError(str(error)) from error
            self._note("warn", f"legacy rules of {self.title} are not traced: {error}")
            return False
        self._stack.enter_context(contextlib.closing(self.lines))
        self._tell_legacy()
        return True

    def _tell_legacy(self) -> None:
        assert self.lines is not None
        rules = self.lines.rules
        change = LegacyChange(self.path, self.inode, rules.tables, self.lines.generation)
        self._changed(change)
        if rules.failed and rules.failed != self._failed:
            self._note("warn", f"legacy rules of {self.title} are not known: {rules.failed}")
        self._failed = rules.failed

    def filter(self, compiled: Compiled) -> None:
        """Flips what `compiled` takes instead.  Raises CaptureError."""
        if self._installed:
            self.table.replace(compiled)
        self._use(compiled)

    def _use(self, compiled: Compiled) -> None:
        self._filter = compiled
        self.journeys.exact = compiled.exact

    def disarm(self) -> None:
        """Flips no more."""
        self._armed = False
        self.table.remove()
        self._installed = set()

    def close(self) -> None:
        """Lets go of the namespace."""
        self._stack.close()

    def flipped(self) -> int:
        """Packets that were flipped, as the kernel counts."""
        return self.table.counted()[0]

    def follow(self, *, now: bool) -> None:
        """Follows what has become of the rules.  `now`: whatever it costs."""
        if self._follow_nft() and self._armed:
            self._install()
        if self.lines is not None:
            with self._inside():
                changed = self.lines.look(now=now)
            if changed:
                self._tell_legacy()

    def _follow_nft(self) -> bool:
        changes, self._decoder.changes = self._decoder.changes, []
        if not changes:
            return False
        try:
            snapshot: Snapshot | None = self._dump.snapshot()
        except CaptureError as error:
            self._note("warn", f"rules of {self.title}: {error}")
            snapshot = None
        number = 0
        for genid, told in changes:
            number = self._number()
            self._generations.change(genid, told, number, snapshot)
        if snapshot is not None and snapshot.genid == changes[-1][0]:
            self._changed(Change(self.path, self.inode, snapshot, number))
        return True

    def look_up(self, indices: set[int]) -> None:
        """Learns the names of devices."""
        with contextlib.suppress(OSError), self._inside():
            self._names.update({index: name.encode()[:15] for index, name in socket.if_nameindex()})
        for index in indices - self._names.keys():
            self._names[index] = f"if{index}".encode()

    @property
    def title(self) -> str:
        """What people call it."""
        return namespaces.title(self.path, self.inode)

    # -- by the engine

    def hear(self) -> int:
        """Decodes what was read; returns its bytes."""
        size = 0
        batches = self.box.take()
        for at in range(0, len(batches), _AT_ONCE):
            some = batches[at : at + _AT_ONCE]
            size += sum(batch.data.nbytes for batch in some)
            events = self._decoder.decode(*some)
            # Taken out by time, as it comes.
            cut = np.flatnonzero(np.diff(events["time"].astype(np.int64)) > _STRETCH) + 1
            self._held.extend(part for part in np.split(events, cut) if len(part))
        if self.lines is not None:
            size += self.lines.hear()
        return size

    def end(self) -> None:
        """Nobody can enter it any more: the rules are as they were."""
        if self.lines is not None:
            self.lines.rules.checked = 1 << 63

    @property
    def lost(self) -> int:
        """Messages for which there was no room, or that could not be read."""
        lines = 0 if self.lines is None else self.lines.lost
        return self.box.drops() + self._decoder.unread + lines

    @property
    def broken(self) -> int:
        """Runs of which something is missing, for whatever reason."""
        return self._calls.incomplete

    @property
    def refused(self) -> int:
        """Runs of packets that others trace and nobody asked for."""
        lines = 0 if self.lines is None else self.lines.journeys.refused
        return self.journeys.refused + lines

    def take(self, before: int) -> list[Calls]:
        """The calls that are finished, of events read before `before`, CLOCK_MONOTONIC ns."""
        if self.lines is not None:
            # All of a packet at one time.
            before = min(before, self.lines.rules.checked)
            if self._armed:
                spans = [*map(_span, self._held), *map(_span, self.lines.held)]
                before = quiet(spans, before)
        ready = []
        while self._held and int(self._held[0]["time"][0]) < before:
            ready.append(self._held.popleft())
        events = np.concatenate(ready) if ready else np.zeros(0, EVENT)
        asked = self.journeys.assign(events)
        self._generations.locate(asked, self._decoder.places)
        now = time.monotonic_ns()
        found = [self._calls.feed(asked, now)]
        if self.lines is not None:
            found.append(self.lines.take(before, self.journeys.flips, now))
        return found

    def _accept(self, packets: Array, caplens: Array) -> Array:
        """Is it one that was asked for?  By headers alone."""
        count = len(packets)
        if self._filter is None or not self._filter.program or not count:
            return np.ones(count, bool)
        data = np.zeros((count, _HEADERS), np.uint8)
        data[:, : packets.shape[1]] = packets
        yes, unknown = matches(self._filter.program, data, caplens, packet_length(packets, caplens))
        self.undecided += int(unknown.sum())
        return yes & ~unknown

    def unnamed(self, indices: Array) -> set[int]:
        """Those of these devices whose name is not known."""
        return {int(one) for one in np.unique(indices) if one} - self._names.keys()

    def name(self, entries: Array) -> None:
        """Fills in what the namespace knows: devices and its inode."""
        entries["netns"] = self.inode
        for side in ("in", "out"):
            indices = entries[f"{side}_ifindex"]
            for index in np.unique(indices).tolist():
                if index:
                    entries[side][indices == index] = self._names.get(index, b"")


def _span(events: Array) -> tuple[int, int]:
    return int(events["time"][0]), int(events["time"][-1])


def quiet(spans: list[tuple[int, int]], before: int) -> int:
    """When least was going on, at most _SLACK before `before`: there no packet is cut in two.

    `spans`: when events began and ended that are taken together, ns.  What nftables and
    legacy tables tell of a packet is put in order only where it is taken at one time.
    """
    cut, widest, end = before, -1, before - 2 * _SLACK
    for start, last in sorted(spans):
        if start > before - _SLACK:
            if start - end > widest:
                cut, widest = min(start, before), start - end
            if start >= before:
                return cut
        end = max(end, last)
    return before


def _init_inode() -> int:
    """The first namespace's, 0 where nobody may say."""
    try:
        return os.stat("/proc/1/ns/net").st_ino
    except OSError:
        return 0
