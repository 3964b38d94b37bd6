# SPDX-License-Identifier: GPL-2.0-only
"""The netlink engine: traces without a module, in namespaces where we may.

A table of our own sets nf_trace; nftables and the legacy tables then tell what
they do over netlink.  Nothing of it outlives us: the table belongs to a socket,
and what else is changed is put back by a guard.  Must not import bcc.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from ipttrace.capture import netns as namespaces
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import Calls, Numbers, in_order
from ipttrace.capture.netlink.legacy import logger as nf_log
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.namespace import Space
from ipttrace.capture.netlink.nft.decode import EVENT
from ipttrace.capture.netlink.reader import Reader
from ipttrace.capture.rules.netlink_watch import Change, LegacyChange
from ipttrace.stream.record import ENTRY, Records

# The kernel takes so much memory for messages only while they are not read.
DEFAULT_BUFFER: Final = 128 << 20
_LEAST_ROOM: Final = 4 << 20
# Messages wait so long, ns: those of one packet come by several ways, and a new
# ruleset is told of a moment after it took effect.
_HOLD: Final = 20_000_000
_LOOK_EVERY: Final = 2.0  # s, for namespaces that come and go

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Options:
    """`program`: sock_filter[] or nothing; `netns`: as namespaces.inode takes it, "all",
    or None for our own; `buffer`: bytes of all namespaces together; `legacy`: trace legacy
    tables too; `first`: of the numbers of calls and journeys."""

    program: bytes = b""
    netns: str | None = None
    buffer: int = DEFAULT_BUFFER
    legacy: bool = True
    first: int = 1


class Wakes:
    """What the agent waits for."""

    def __init__(self, fd: int) -> None:
        self.cpus = os.cpu_count() or 1
        self._epoll = select.epoll()
        self._fd = fd
        self.watch(fd)

    def watch(self, fd: int) -> None:
        """Makes `wait` return when `fd` can be read, too."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Undoes `watch`."""
        self._epoll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Waits until much has come, a watched fd is readable, or time is up."""
        ready = {fd for fd, _ in self._epoll.poll(seconds)}
        if self._fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        return ready

    def close(self) -> None:
        self._epoll.close()


class NetlinkEngine:
    """Armed from construction to `close`, but from each `disarm` to the next `arm`."""

    name: Final = "netlink"

    def __init__(self, options: Options) -> None:
        self.notes: list[tuple[str, str]] = []
        self.over = ""  # why there is nothing left to trace
        self._options = options
        self._compiled = nft_filter.compile(options.program)
        self._numbers = Numbers(options.first)
        self._generation = 0
        self._armed = False
        self._delivered = [0, 0, 0]
        # Of the last `take`: where journeys began, and the priority of each entry's chain.
        self.flips = np.zeros(0, EVENT)
        self.before = 0  # what was read before is in it, CLOCK_MONOTONIC ns
        self.priorities = np.zeros(0, np.int32)
        self._gone = _Sums()  # of namespaces that were left
        self._rest: list[Calls] = []  # of such, for the next `take`
        self._rest_flips: list[Array] = []
        self._spaces: dict[int, Space] = {}
        self._refused: set[int] = set()
        self.changes: queue.Queue[Change | LegacyChange] = queue.Queue()
        self._look_due = 0.0
        with contextlib.ExitStack() as stack:
            # Only this thread enters namespaces: the others' /proc/self stays what it is.
            self._worker = ThreadPoolExecutor(1, "ipttrace-netns")
            stack.callback(self._worker.shutdown)
            self._reader = Reader()
            stack.callback(self._reader.close)
            self.buffers = Wakes(self._reader.wake)
            stack.callback(self.buffers.close)
            self._setting: LogSetting | None = None
            self._setting_stack = stack.enter_context(contextlib.ExitStack())
            stack.callback(self._leave_all)
            if options.legacy:
                self.notes += [("warn", said) for said in self._there(nf_log.repair)]
            self._begin()
            self.arm()
            self._stack = stack.pop_all()

    # -- namespaces

    def _begin(self) -> None:
        if self._options.netns == namespaces.ALL:
            self._look()
            if not self._spaces:
                raise CaptureError(self.notes[-1][1] if self.notes else "nothing can be traced")
            return
        if self._options.netns is None:
            path = "/proc/self/ns/net"
            inode = os.stat(path).st_ino
        else:
            inode = namespaces.inode(self._options.netns)
            path = namespaces.paths(inode).get(inode, "/proc/self/ns/net")
        self._enter(inode, path)

    def _there(self, do: Callable[[], _T]) -> _T:
        return self._worker.submit(do).result()

    def _enter(self, inode: int, path: str) -> None:
        share = self._options.buffer // max(1, len(self._spaces) + 1)

        def make() -> Space:
            try:
                return Space(
                    path,
                    inode,
                    max(share, _LEAST_ROOM),
                    self._numbers,
                    self._next_generation,
                    self.changes.put,
                    self._note,
                    self._make_setting if self._options.legacy else None,
                )
            except PermissionError as error:
                raise CaptureError(
                    "another network namespace can be entered by root only: run with sudo"
                ) from error
            except OSError as error:
                raise CaptureError(f"the network namespace cannot be entered: {error}") from error

        space = self._there(make)
        self._reader.add(space.box)
        self._spaces[inode] = space
        if self._armed:
            self._arm(space)

    def _arm(self, space: Space) -> None:
        def arm() -> None:
            space.arm(self._compiled)

        try:
            self._there(arm)
        except OSError as error:
            raise CaptureError(f"{space.title} cannot be entered: {error}") from error
        finally:
            self._hear_lines(space)

    def _hear_lines(self, space: Space) -> None:
        if space.lines is not None:
            self._reader.add(space.lines.box)

    def _make_setting(self) -> LogSetting:
        if self._setting is None:
            self._setting = LogSetting()
            self._setting_stack.callback(self._setting.give_back)
        return self._setting

    def _leave(self, space: Space, why: str = "") -> None:
        del self._spaces[space.inode]
        self.changes.put(Change(space.path, space.inode, None, 0))
        self._reader.remove(space.box)
        if space.lines is not None:
            self._reader.remove(space.lines.box)
        self._reader.taken(space.hear())
        if self._armed:
            space.end()
            self._rest += self._calls(space, 1 << 63)
            self._rest_flips.append(space.journeys.flips)
        self._gone.add(space, self._there)
        with contextlib.suppress(CaptureError, OSError):
            self._there(space.close)
        if why:
            self._note("warn", f"{space.title} {why}")

    def _leave_all(self) -> None:
        for space in list(self._spaces.values()):
            self._leave(space)

    def _look(self) -> None:
        """Which namespaces have come, and which have gone."""
        self._look_due = time.monotonic() + _LOOK_EVERY
        found = {}
        if self._options.netns is not None:
            found = self._there(lambda: namespaces.paths(None))
            for space in list(self._spaces.values()):
                if space.inode not in found:
                    self._leave(space, "has gone: it is not traced any more")
                else:
                    space.path = found[space.inode]
        for space in self._spaces.values():
            # Tables come with the first command that looks at them.
            with contextlib.suppress(OSError):
                if self._armed and self._there(space.find_legacy):
                    self._hear_lines(space)
        if self._options.netns == namespaces.ALL:
            # Numbers are used again.
            self._refused &= found.keys()
            for inode in found.keys() - self._spaces.keys() - self._refused:
                self._try_to_enter(inode, found[inode])
        elif not self._spaces and not self.over:
            self.over = "gone"

    def _try_to_enter(self, inode: int, path: str) -> None:
        try:
            self._enter(inode, path)
        except CaptureError as error:
            if inode in self._spaces:
                self._leave(self._spaces[inode])
            self._refused.add(inode)
            self._note("warn", f"network namespace {inode} is not traced: {error}")

    def _note(self, level: str, text: str) -> None:
        self.notes.append((level, text))

    def _next_generation(self) -> int:
        self._generation += 1
        return self._generation

    # -- as every engine

    def arm(self) -> None:
        """Starts, and starts again after `disarm`, with the filter in force."""

        for space in list(self._spaces.values()):
            try:
                self._arm(space)
            except CaptureError as error:
                if self._options.netns != namespaces.ALL or len(self._spaces) == 1:
                    raise
                self._leave(space)
                self._refused.add(space.inode)
                self._note("warn", f"{space.title} is not traced: {error}")
        self._armed = True

    def filter(self, program: bytes) -> None:
        """Replaces the filter, at once, without a gap; where disarmed, for the next `arm`."""
        compiled = nft_filter.compile(program)

        def change() -> None:
            for space in self._spaces.values():
                space.filter(compiled)

        if self._armed:
            self._there(change)
        self._compiled = compiled
        self._options = replace(self._options, program=program)

    def disarm(self) -> None:
        """No packet is flipped after this; what was told of is there to be taken."""

        def disarm() -> None:
            for space in self._spaces.values():
                space.disarm()

        self._there(disarm)
        self._armed = False

    def take(self) -> list[Records]:
        """All records of calls that are finished by now: entries, rules, exits."""
        if not self._armed:
            self._reader.flush()
        elif time.monotonic() >= self._look_due:
            self._look()
        before = self.before = time.monotonic_ns() - (_HOLD if self._armed else -1)
        found, self._rest = self._rest, []
        flips, self._rest_flips = self._rest_flips, []
        for space in self._spaces.values():
            self._reader.taken(space.hear())
            try:
                self._there(partial(space.follow, now=not self._armed))
            except (FileNotFoundError, ProcessLookupError):
                self._look_due = 0.0  # it has gone, or there is another way to it
                if not self._armed:
                    space.end()
            found += self._calls(space, before)
            flips.append(space.journeys.flips)
        self.flips = np.concatenate(flips) if flips else np.zeros(0, EVENT)
        records, self.priorities = in_order(found or [Calls.none()])
        for kind, part in enumerate(records):
            self._delivered[kind] += len(part)
        return records

    def _calls(self, space: Space, before: int) -> list[Calls]:
        found = []
        for calls in space.take(before):
            for entries in (calls.entries, calls.cut):
                self._name(space, entries)
            if len(calls.entries) or len(calls.cut):
                found.append(calls)
        return found

    @property
    def wake(self) -> int:
        """A descriptor that can be read once much has come."""
        return self._reader.wake

    def flush(self) -> None:
        """Reads what has been written until now."""
        self._reader.flush()

    def drain_wake(self) -> None:
        """Has been woken."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._reader.wake)

    def _name(self, space: Space, entries: Records) -> None:
        if len(entries):
            devices = np.concatenate([entries["in_ifindex"], entries["out_ifindex"]])
            if unnamed := space.unnamed(devices):
                self._there(partial(space.look_up, unnamed))
            space.name(entries)

    def lost_exits(self) -> int:
        """What was lost are messages: which calls they were of is not known."""
        return 0

    def books(self) -> dict[str, Any]:
        """The counters of this moment.

        lost: messages that a socket had no room for, as the kernel counts them, and
        those that nobody here can read, each of which would have been a rule or a
        call's end; missed: packets of which their headers do not tell whether they were
        asked for, and once disarmed those that the kernel flipped and no message told
        of, and runs that were not told whole.
        """
        sums = _Sums()
        for space in self._spaces.values():
            sums.add(space, self._there)
        sums.join(self._gone)
        missed = sums.undecided
        if not self._armed:
            missed += max(0, sums.flipped - sums.begun - sums.lost)
            # Where the kernel has no memory for a message, nobody counts it.
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
            "filter": self._compiled.words,
        }

    def close(self) -> None:
        """Gives everything back; the host is as it was."""
        self._stack.close()


@dataclass(slots=True)
class _Sums:
    """Counters of some namespaces."""

    lost: int = 0
    flipped: int = 0
    begun: int = 0
    refused: int = 0
    undecided: int = 0
    broken: int = 0

    def add(self, space: Space, there: Any = None) -> None:
        self.lost += space.lost
        with contextlib.suppress(CaptureError):
            self.flipped += there(space.flipped) if there else space.flipped()
        self.begun += space.journeys.begun
        self.refused += space.refused
        self.undecided += space.undecided
        self.broken += space.broken

    def join(self, other: _Sums) -> None:
        for name in _Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
