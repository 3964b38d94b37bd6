# SPDX-License-Identifier: GPL-2.0-only
"""The netlink engine: traces nftables and legacy tables without a kernel module.

In each traced namespace a flip table sets nf_trace on packets that match EXPR; nftables
and the legacy tables then report rule hits over netlink.  Nothing outlives the process:
a socket owns the flip table, and a guard process restores the log setting.  Long because
it has all that concerns several namespaces at once.  Must not import bcc.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import numpy as np

from ipttrace.capture import netns
from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.breakpoints import Wanted
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import Calls, in_order
from ipttrace.capture.netlink.changes import NftChange
from ipttrace.capture.netlink.context import RunContext
from ipttrace.capture.netlink.counters import Counters
from ipttrace.capture.netlink.events import NO_EVENTS
from ipttrace.capture.netlink.legacy import logger
from ipttrace.capture.netlink.namespace import SIDES, TracedNamespace
from ipttrace.capture.netlink.reader import MOST_STORED, MailboxReader
from ipttrace.capture.netlink.wake import WakeSources
from ipttrace.capture.opaque import joined
from ipttrace.stream.messages import Books
from ipttrace.stream.record import ENTRY, Records

# Bytes; the kernel uses this memory only for messages that have not been read.
DEFAULT_BUFFER: Final = 128 << 20
_LEAST_BUFFER: Final = 4 << 20  # of one namespace
# How long messages wait, ns: those of one packet are taken together, and a new ruleset is
# announced after it took effect.
_HOLD: Final = 20_000_000
# Bytes of messages that are decoded at once, and of events that are held, of all namespaces
# together: what is beyond stays undecoded, then in the kernel's buffers.
_PORTION: Final = 4 << 20
_MOST_HELD: Final = 16 << 20
_SCAN_EVERY: Final = 2.0  # s, for new namespaces, namespaces that are gone, new legacy tables
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace, and how.

    `program`: the filter, sock_filter[], empty for all packets; `netns`: see netns.inode,
    "all", or None for this process's own; `buffer`: bytes for messages in the kernel, of
    all namespaces together; `legacy`: trace legacy tables too; `first`: the first number
    of calls and journeys; `listen`: for reports of traced packets; else packets are flipped and
    rules are followed for another engine, which sees the packets; `beside_module`: see RunContext;
    `from_rules`: flip no packet, but trace those that rules mark; `carried`: the descriptor of
    a socket filter that matches further packets to flip, -1: none.
    """

    program: bytes = b""
    netns: str | None = None
    buffer: int = DEFAULT_BUFFER
    legacy: bool = True
    first: int = 1
    listen: bool = True
    beside_module: bool = False
    from_rules: bool = False
    carried: int = -1


class NetlinkEngine:
    """The engine; armed when it is made.  Raises CaptureError if nothing can be traced."""

    name: Final = "netlink"

    def __init__(self, options: Options) -> None:
        context = self._context = RunContext(
            options.first,
            legacy=options.legacy,
            listen=options.listen,
            beside_module=options.beside_module,
            marked=Wanted(options.netns) if options.from_rules else None,
        )
        context.carried = options.carried
        self.notes = context.notes
        self.record_names = context.names
        self.names = context.names.new
        self.changes = context.changes  # of rules, for the watch that reads their texts
        self.over = ""  # why there is nothing left to trace
        self._options = options
        self._compiled = nft_filter.compile(options.program)
        self._armed = False
        self._delivered = [0, 0, 0]
        # Of the last `take`: flips (EVENT), and the priority of each entry's chain.
        self.flips, self.priorities = NO_EVENTS, np.zeros(0, np.int32)
        self.before = 0  # it returned what had been read before, CLOCK_MONOTONIC ns
        self.rows_wait = True  # of another engine, for legacy rules?
        self.addresses = HiddenAddresses()  # its own records have none
        # Of namespaces that were removed: counters; calls and flips for the next `take`.
        self._removed = Counters()
        self._removed_calls: list[Calls] = []
        self._removed_flips: list[Array] = []
        self._namespaces: dict[int, TracedNamespace] = {}  # by inode
        self.namespaces: Final[Mapping[int, TracedNamespace]] = self._namespaces
        self._untraceable: set[int] = set()  # inodes
        self._scan_due = 0.0
        with contextlib.ExitStack() as stack:
            # Only this thread enters namespaces, so that /proc/self stays the same for others.
            self._worker = ThreadPoolExecutor(1, "ipttrace-netns")
            stack.callback(self._worker.shutdown)
            self._reader = MailboxReader()
            stack.callback(self._reader.close)
            context.flush = self._reader.flush
            context.paused = self._reader.paused
            self.buffers = WakeSources(self._reader.wake)
            context.watch, context.unwatch = self.buffers.watch, self.buffers.unwatch
            stack.callback(self.buffers.close)
            stack.callback(context.close)
            stack.callback(self._remove_all)
            if options.legacy:
                for repaired in self._in_worker(logger.repair):
                    context.warn(repaired)
            self._add_first()
            self.arm()
            self._stack = stack.pop_all()

    # -- namespaces

    def _add_first(self) -> None:
        if self._options.netns == netns.ALL:
            self._scan()
            if not self._namespaces:
                last_note = self.notes[-1][1] if self.notes else ""
                raise CaptureError(last_note or "no network namespace can be traced")
            return
        if self._options.netns is None:
            path = "/proc/self/ns/net"
            inode = os.stat(path).st_ino
        else:
            inode = netns.inode(self._options.netns)
            path = netns.paths(inode).get(inode, "/proc/self/ns/net")
        self._add(inode, path)

    def _in_worker(self, do: Callable[[], _T]) -> _T:
        """Calls `do` in the thread that enters namespaces."""
        return self._worker.submit(do).result()

    def _in_each(self, do: Callable[[TracedNamespace], None]) -> None:
        self._in_worker(lambda: list(map(do, self._namespaces.values())))

    def _add(self, inode: int, path: str) -> None:
        share = self._options.buffer // max(1, len(self._namespaces) + 1)

        def make() -> TracedNamespace:
            try:
                return TracedNamespace(path, inode, max(share, _LEAST_BUFFER), self._context)
            except PermissionError as error:
                raise CaptureError(
                    "only root can enter another network namespace: run with sudo"
                ) from error
            except OSError as error:
                raise CaptureError(f"the network namespace cannot be entered: {error}") from error

        namespace = self._in_worker(make)
        self._reader.add(namespace.mailbox)
        self._namespaces[inode] = namespace
        if self._armed:
            self._arm(namespace)

    def _arm(self, namespace: TracedNamespace) -> None:
        try:
            self._in_worker(partial(namespace.arm, self._compiled))
        except OSError as error:
            raise CaptureError(f"{namespace.title} cannot be entered: {error}") from error

    def _remove(self, namespace: TracedNamespace) -> None:
        """Stops tracing a namespace; keeps its finished calls for the next `take`."""
        del self._namespaces[namespace.inode]
        self.changes.put(NftChange(namespace.path, namespace.inode, None, 0))
        self._reader.remove(namespace.mailbox)
        namespace.freeze_rules()
        while True:
            self._reader.taken(namespace.receive(_PORTION, _MOST_HELD))
            oldest = namespace.oldest
            calls = self._calls(namespace, 1 << 63 if oldest is None else oldest)
            if self._armed:
                self._removed_calls += calls
                self._removed_flips.append(namespace.journeys.flips)
            if oldest is None:
                break
        self._removed.add(namespace, self._flipped(namespace))
        with contextlib.suppress(CaptureError, OSError):
            self._in_worker(namespace.close)

    def _remove_all(self) -> None:
        for namespace in list(self._namespaces.values()):
            self._remove(namespace)

    def _scan(self) -> None:
        """Adds new namespaces, removes those that are gone, and finds new legacy tables."""
        self._scan_due = time.monotonic() + _SCAN_EVERY
        self._context.mark(wanted=self._armed)
        found = {}
        if self._options.netns is not None:
            found = self._in_worker(lambda: netns.paths(None))
            for namespace in list(self._namespaces.values()):
                if namespace.inode not in found:
                    self._remove(namespace)
                    self._context.warn(f"{namespace.title} is gone: it is no longer traced")
                else:
                    namespace.path = found[namespace.inode]
        for namespace in self._namespaces.values():
            # The kernel creates legacy tables when a command first reads them.
            with contextlib.suppress(OSError):
                if self._armed:
                    self._in_worker(namespace.find_legacy)
            self._in_worker(namespace.update_flips)
        if self._options.netns == netns.ALL:
            # An inode that is gone may come back as another namespace.
            self._untraceable &= found.keys()
            for inode in found.keys() - self._namespaces.keys() - self._untraceable:
                self._try_to_add(inode, found[inode])
        elif not self._namespaces and not self.over:
            self.over = "gone"

    def _try_to_add(self, inode: int, path: str) -> None:
        try:
            self._add(inode, path)
        except CaptureError as error:
            if inode in self._namespaces:
                self._remove(self._namespaces[inode])
            self._untraceable.add(inode)
            self._context.warn(f"network namespace {inode} is not traced: {error}")

    # -- as every engine

    def arm(self) -> None:
        """Starts tracing with the current filter.  Raises CaptureError."""
        for namespace in list(self._namespaces.values()):
            try:
                self._arm(namespace)
            except CaptureError as error:
                if self._options.netns != netns.ALL or len(self._namespaces) == 1:
                    raise
                self._remove(namespace)
                self._untraceable.add(namespace.inode)
                self._context.warn(f"{namespace.title} is not traced: {error}")
        self._armed = True
        self._context.mark(wanted=True)

    def filter(self, program: bytes) -> None:
        """Replaces the filter at once, without a gap; if disarmed, for the next `arm`.

        Raises CaptureError, FilterError.
        """
        compiled = nft_filter.compile(program)
        if self._armed:
            self._in_each(lambda one: one.filter(compiled))
        self._compiled = compiled
        self._options = replace(self._options, program=program)

    def carry(self, descriptor: int) -> None:
        """Flips what this socket filter matches too, from now on.  Raises CaptureError."""
        self._context.carried = descriptor
        if self._armed:
            self._in_each(lambda one: one.filter(self._compiled))

    def disarm(self) -> None:
        """No packet is flipped after this; calls reported before can still be taken.

        Raises CaptureError.
        """
        self._context.mark(wanted=False)
        self._in_each(TracedNamespace.disarm)
        self._armed = False

    def take(self) -> list[Records]:
        """The records of calls that have finished: entries, rules, exits.

        Of many messages a portion; if disarmed, none at all only if none will follow.
        """
        if not self._armed:
            self._reader.flush()
        elif time.monotonic() >= self._scan_due:
            self._scan()
        before = time.monotonic_ns() - (_HOLD if self._armed else -1)
        found, self._removed_calls = self._removed_calls, []
        flips, self._removed_flips = self._removed_flips, []
        while True:
            self._receive()
            waiting = [one.oldest for one in self._namespaces.values()]
            self.before = min([before, *(one for one in waiting if one is not None)])
            for namespace in self._namespaces.values():
                found += self._calls(namespace, self.before)
                flips.append(namespace.journeys.flips)
            if self._armed or found or self.before == before:
                break
        self.flips = joined([part for part in flips if len(part)] or [NO_EVENTS])
        records, self.priorities = in_order(found)
        self._delivered = [a + len(b) for a, b in zip(self._delivered, records, strict=True)]
        return records

    def _receive(self) -> None:
        """Decodes a portion of the messages, and reads the rules that they say have changed."""
        count = max(1, len(self._namespaces))
        for namespace in self._namespaces.values():
            self._reader.taken(namespace.receive(_PORTION // count, _MOST_HELD // count))
            try:
                if not self._armed or namespace.rules_are_due(self.rows_wait):
                    self._in_worker(partial(namespace.update_rules, force=not self._armed))
            except (FileNotFoundError, ProcessLookupError):
                self._scan_due = 0.0  # it is gone, or another path leads to it now
                if not self._armed:
                    namespace.freeze_rules()

    def _calls(self, namespace: TracedNamespace, before: int) -> list[Calls]:
        found = []
        for calls in namespace.take(before):
            for entries in (calls.entries, calls.cut):
                self._name(namespace, entries)
            if len(calls.entries) or len(calls.cut):
                found.append(calls)
        return found

    @property
    def wake(self) -> int:
        """A descriptor that is readable when many messages have come."""
        return self._reader.wake

    def flush(self) -> bool:
        """Reads all messages that the kernel has sent until now, as far as there is memory.

        Returns whether it has read all.
        """
        return self._reader.flush(MOST_STORED)

    def drain_wake(self) -> None:
        """Makes `wake` not readable, until many messages have come again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._reader.wake)

    def _name(self, namespace: TracedNamespace, entries: Records) -> None:
        if len(entries):
            devices = np.concatenate([entries[f"{side}_ifindex"] for side in SIDES])
            if unnamed := namespace.unnamed(devices):
                self._in_worker(partial(namespace.look_up, unnamed))
            namespace.name(entries)

    def lost_exits(self) -> int:
        """Always 0: messages are lost, and which calls they were of is unknown."""
        return 0

    def books(self) -> Books:
        """The current counters.

        lost: messages for which a socket had no room, as the kernel counts them, and
        messages that cannot be decoded; each would have been a rule or the end of a call.
        missed: packets whose captured headers do not decide whether EXPR matches; once
        disarmed also flips without a message, and calls with messages missing.
        """
        sums = Counters()
        for namespace in self._namespaces.values():
            sums.add(namespace, self._flipped(namespace))
        sums.join(self._removed)
        missed = sums.undecided
        if not self._armed:
            missed += max(0, sums.flipped - sums.begun - sums.lost)
            # The kernel does not count messages for which it could not allocate memory.
            missed += max(0, sums.broken - sums.lost)
        lost = [0, sums.lost, 0]
        due = [a + b for a, b in zip(self._delivered, lost, strict=True)]
        due[ENTRY] += missed
        return {
            "engine": self.name,
            "state": "armed" if self._armed else "disarmed",
            "calls": self._delivered[ENTRY],
            "refused": sums.refused,
            "matched": self._delivered[ENTRY],
            "flipped": sums.flipped,
            "due": due,
            "delivered": list(self._delivered),
            "lost": lost,
            "missed": missed,
            "filter": self._location(),
        }

    def _location(self) -> str:
        if not self._compiled.exact and all(one.exact for one in self._namespaces.values()):
            return "in the kernel (xt_bpf)"
        return self._compiled.location

    def close(self) -> None:
        """Disarms and restores everything on the host that the engine changed."""
        self._stack.close()

    def _flipped(self, namespace: TracedNamespace) -> int:
        with contextlib.suppress(CaptureError):
            return self._in_worker(namespace.flipped)
        return 0
