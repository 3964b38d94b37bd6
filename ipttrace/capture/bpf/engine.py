# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine: traces without a kernel module, with all that rows can have.

BPF programs (bpf/nft.bpf.c, bpf/legacy.bpf.c) see each run of a packet with nf_trace through
a base chain or a legacy table.  What sets nf_trace, and what rules met there, comes from a
netlink engine that does not listen for reports.  Nothing outlives the process: it holds the
programs' links, a socket owns the flip tables, and a guard process restores the log setting.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.capture import netns
from ipttrace.capture.addresses import HiddenAddresses
from ipttrace.capture.bpf.calls import make_calls
from ipttrace.capture.bpf.cursors import Cursors
from ipttrace.capture.bpf.follow import Follower
from ipttrace.capture.bpf.legacy_calls import make_legacy_calls
from ipttrace.capture.bpf.programs import (
    LOST_RULES,
    LOST_RUNS,
    MISSED,
    REFUSED,
    RULES,
    RUNS,
    Programs,
    conntrack_is_loaded,
)
from ipttrace.capture.bpf.runs import DOUBTFUL, FOREIGN, Array, RunReader, Runs
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.netlink import engine as netlink
from ipttrace.capture.netlink.calls import Calls, in_order
from ipttrace.capture.netlink.events import ChainRegistry
from ipttrace.capture.netlink.namespace import TracedNamespace
from ipttrace.capture.netlink.nft.dump import Dump
from ipttrace.stream import record
from ipttrace.stream.messages import Books, Level
from ipttrace.stream.record import Records

DEFAULT_BUFFER: Final = 32 << 20  # bytes of the ring
_NETLINK_BUFFER: Final = 8 << 20  # for messages about changes of rules
_MOST_HELD: Final = 64 << 20  # bytes of runs that wait for rules: what is beyond stays in the ring
_MOST_REFUSED: Final = 1 << 16  # packets
_LEGACY_EVERY: Final = 1.0  # s, for legacy tables' modules that are loaded later
_NEVER: Final = 1 << 63  # ns
_MOST_GONE: Final = 64  # namespaces that are gone, whose last runs may still come


@dataclass(frozen=True, slots=True)
class Options:
    """What to trace: `program`, `netns` as of the netlink engine; `buffer`: bytes of the ring.

    `raw_addresses`: records contain the kernel's addresses as they are.  Without `legacy`,
    another engine traces the legacy tables; `from_rules`: only packets that rules mark.
    """

    program: bytes = b""
    netns: str | None = None
    buffer: int = DEFAULT_BUFFER
    raw_addresses: bool = False
    legacy: bool = True
    from_rules: bool = False


class BpfEngine:
    """The engine; armed when it is made.  Raises CaptureError if it cannot run."""

    name: Final = "bpf"

    def __init__(self, options: Options) -> None:
        self._raw_addresses = options.raw_addresses
        self._reader = RunReader()
        self._held: list[Runs] = []  # not yet taken
        self._cursors = Cursors()
        self._delivered = [0, 0, 0]
        self._withheld = [0, 0]  # runs and hits that make no row
        self._refused: set[int] = set()  # addresses of packets that EXPR does not match
        self._refused_runs = 0
        self._chains: dict[int, ChainRegistry] = {}  # of namespaces that are or were traced
        Dump().close()  # the kernel loads nf_tables when it is first asked
        with contextlib.ExitStack() as stack:
            self._programs = Programs(
                options.buffer, legacy=options.legacy, from_rules=options.from_rules
            )
            stack.callback(self._programs.close)
            # Attached before packets are flipped, so that none is met in the middle of its way.
            failures = self._programs.trace_legacy()
            self._set_filter(options.program)
            legacy = self._programs.legacy
            self._follower: Follower | None = None
            self._follows = options.netns == netns.ALL and not options.from_rules
            several = self._follows and len(netns.paths(None)) > 1
            refusal = self._follow(stack) if several else ""
            self._netlink = netlink.NetlinkEngine(
                netlink.Options(
                    options.program,
                    options.netns,
                    _NETLINK_BUFFER,
                    legacy=legacy,
                    listen=False,
                    beside_module=not options.legacy,
                    from_rules=options.from_rules,
                    carried=-1 if self._follower is None else self._follower.carried,
                )
            )
            stack.callback(self._netlink.close)
            self._stack = stack.pop_all()
        self._armed = True
        self._settle_filter()
        self.notes: list[tuple[Level, str]] = self._netlink.notes
        self.notes += [("warn", text) for text in failures]
        if refusal:
            self.notes.append(("warn", refusal))
        if self._programs.probed:
            text = f"tracing with kprobes, since fentry is refused: {self._programs.probed}"
            self.notes.append(("info", text))
        self._legacy_due = time.monotonic() + _LEGACY_EVERY
        self.names = self._netlink.names
        self.over = ""  # why there is nothing left to trace
        self.changes = self._netlink.changes
        self.buffers = self._netlink.buffers
        self.addresses = HiddenAddresses()
        # Of the last `take`: all runs that ended before this time have been taken, ns.
        self.before = 0
        self._sees_conntrack = self._programs.sees_conntrack

    def _follow(self, stack: contextlib.ExitStack) -> str:
        """Follows packets from one namespace to another; returns why that is not possible."""
        self._follows = False  # do not try again
        try:
            follower = self._programs.follower()
            stack.callback(follower.close)
            follower.attach()
        except CaptureError as error:
            return f"a packet is another one in each network namespace: {error}"
        self._follower = follower
        return ""

    def _follow_more(self) -> None:
        """Begins to follow packets when there is a second namespace."""
        if not self._follows or len(self._netlink.namespaces) < 2:
            return
        if refusal := self._follow(self._stack):
            self.notes.append(("warn", refusal))
        elif self._follower is not None:
            self._netlink.carry(self._follower.carried)

    def arm(self) -> None:
        """Starts tracing with the current filter.  Raises CaptureError."""
        self._programs.attach()
        try:
            if self._follower is not None:
                self._follower.attach()
            self._set_filter(self._program)
            self._netlink.arm()
        except BaseException:
            self._detach()
            raise
        self._armed = True
        self._settle_filter()

    def disarm(self) -> None:
        """Ends tracing; what was written until now can still be taken.  Raises CaptureError."""
        try:
            self._netlink.disarm()
        finally:
            self._detach()
        self._armed = False

    def _detach(self) -> None:
        self._programs.detach()
        if self._follower is not None:
            self._follower.detach()

    def filter(self, program: bytes) -> None:
        """Replaces the filter at once.  Raises CaptureError, FilterError."""
        self._netlink.filter(program)
        self._set_filter(program)
        self._settle_filter()

    def _set_filter(self, program: bytes) -> None:
        self._filtered = bool(program)
        self._program = program
        self._let_programs_filter(not nft_filter.compile(program).exact)
        self._refused.clear()

    def _let_programs_filter(self, needed: bool) -> None:
        """Whether the programs refuse packets that were flipped though EXPR does not match."""
        self._programs.filter(self._program if needed else b"")
        self._filter_since = time.monotonic_ns() if needed else _NEVER

    def _settle_filter(self) -> None:
        """Spares the programs the filter if the flip tables turned out to be exact."""
        if self._filter_since != _NEVER and self._flips_exactly():
            self._let_programs_filter(False)

    def _flips_exactly(self) -> bool:
        return all(one.exact for one in self._netlink.namespaces.values())

    def take(self) -> list[Records]:
        """The records of runs whose rules are known by now: entries, rules, exits."""
        read_at = time.monotonic_ns()
        if sum(one.nbytes for one in self._held) < _MOST_HELD:
            read = self._reader.read(*self._programs.ring.look())
            self._programs.ring.release()
            if len(read.entries):
                self._held.append(read)
        else:
            read_at = self.before
        self._note_chains()
        self._netlink.rows_wait = bool(self._held)
        self._netlink.take()
        if self._filter_since == _NEVER and not self._flips_exactly():
            self._let_programs_filter(True)
        self._note_modules()
        if self._armed:
            self._follow_more()
        self.over = self._netlink.over
        runs = Runs.join(self._held)
        if self._held:
            ready = self._are_ready(runs.entries)
            self._held = [] if ready.all() else [runs.pick(~ready)]
            runs = runs.pick(ready)
        waiting = [int(one.entries["time"].min()) for one in self._held]
        self.before = min(read_at, *waiting) if waiting else read_at
        records = self._records(runs)
        for kind, part in enumerate(records):
            self._delivered[kind] += len(part)
        if not self._raw_addresses:
            self.addresses.hide(records)
        return records

    def take_flips(self) -> Array:
        """Flips since the last call, if legacy tables are another engine's: FLIP_DTYPE, (n,)."""
        return self._reader.take_flips()

    def _are_ready(self, entries: Array) -> Array:
        """The runs whose rules have been read: bool, shape (n,)."""
        times = entries["time"]
        ready: Array = times < self._netlink.before
        for inode, namespace in self._netlink.namespaces.items():
            if (checked := namespace.rules_checked) < self._netlink.before:
                ready &= (entries["netns"] != inode) | (times < checked)
        return ready

    def _note_modules(self) -> None:
        """Follows modules of the kernel that are loaded later."""
        now = time.monotonic()
        if now < self._legacy_due:
            return
        self._legacy_due = now + _LEGACY_EVERY
        self.notes += [("warn", text) for text in self._programs.trace_legacy()]
        if not self._sees_conntrack and conntrack_is_loaded():
            self._sees_conntrack = True
            text = "conntrack was loaded after ipttrace started: start it again to see connections"
            self.notes.append(("warn", text))

    def _note_chains(self) -> None:
        now = self._netlink.namespaces
        self._chains |= {inode: one.chains for inode, one in now.items()}
        gone = [inode for inode in self._chains if inode not in now]
        self._cursors.forget(set(gone))
        for inode in gone[:-_MOST_GONE]:
            del self._chains[inode]

    def _records(self, runs: Runs) -> list[Records]:
        found: list[Calls] = []
        hits = len(runs.hits)
        for inode, some in _by_namespace(runs):
            namespace = self._netlink.namespaces.get(inode)
            timeline = None
            if namespace is not None:
                some = some.pick(self._matching(some, namespace))
                chains, locate = namespace.chains, namespace.locate
                timeline = namespace.timeline
            elif inode in self._chains:
                chains, locate = self._chains[inode], _unknown
            else:
                self._refused_runs += len(some.entries)
                continue  # a rule there traces packets: not ours
            legacy = some.entries["tables"] == 0
            nft = some.pick(~legacy)
            self._cursors.correct(inode, nft.heads, nft.entries["time"])
            names, told = self._netlink.record_names, self._reader.names
            found.append(make_calls(nft, chains, locate, names, told))
            found.append(make_legacy_calls(some.pick(legacy), timeline, told))
        records, _ = in_order(found)
        self._withheld[0] += len(runs.entries) - len(records[record.ENTRY])
        self._withheld[1] += hits - len(records[record.RULE])
        return records

    def _matching(self, runs: Runs, namespace: TracedNamespace) -> Array:
        """Which runs are of packets that EXPR matches: bool, shape (n,).

        The flip table or the programs have decided it, unless another program's rule set
        nf_trace, or a program could not.  A packet is asked for at its first run, before NAT.
        """
        entries = runs.entries
        keep = np.ones(len(entries), bool)
        if not self._filtered:
            return keep
        first = entries["flags"] & record.F_FIRST != 0
        doubtful = first & (runs.heads["flags"] & (FOREIGN | DOUBTFUL) != 0)
        if not namespace.exact:
            doubtful |= first & (entries["time"] < self._filter_since)
        if doubtful.any():
            some = entries[doubtful]
            keep[doubtful] = namespace.matches(some["packet"], some["caplen"])
        if keep.all() and not self._refused:
            return keep
        for at, (skb, begins) in enumerate(
            zip(entries["skb"].tolist(), first.tolist(), strict=True)
        ):
            if begins:
                self._refused.discard(skb)
                if not keep[at]:
                    self._refused.add(skb)
            elif skb in self._refused:
                keep[at] = False
        if len(self._refused) > _MOST_REFUSED:
            self._refused.clear()
        self._refused_runs += int((~keep).sum())
        return keep

    def lost_exits(self) -> int:
        """Exit records, and so rows, for which the ring had no room."""
        return self._programs.counters()[LOST_RUNS]

    def books(self) -> Books:
        """The counters of this moment.

        due: counted by the programs, before a record is written, less what makes no row;
        delivered: here; lost: by the programs; missed: runs without a state, and programs
        that could not run.
        """
        found = self._programs.counters()
        flips = self._netlink.books()
        runs = found[RUNS] - self._withheld[0]
        missed = found[MISSED]
        return {
            "engine": self.name,
            "state": "armed" if self._armed else "disarmed",
            "calls": found[RUNS] + found[REFUSED],
            "refused": self._refused_runs + found[REFUSED],
            "matched": runs,
            "flipped": flips["flipped"],
            "due": [runs + missed, found[RULES] - self._withheld[1], runs],
            "delivered": list(self._delivered),
            "lost": [found[LOST_RUNS], found[LOST_RULES], found[LOST_RUNS]],
            "missed": missed,
            "filter": flips["filter"] if self._flips_exactly() else "in the kernel (bpf)",
        }

    def close(self) -> None:
        """Disarms and removes everything that was added to the host."""
        self._stack.close()


def _by_namespace(runs: Runs) -> Iterator[tuple[int, Runs]]:
    """The runs of each network namespace, by inode."""
    inodes = runs.entries["netns"]
    if len(inodes) and (inodes == inodes[0]).all():
        yield int(inodes[0]), runs
        return
    for inode in np.unique(inodes).tolist():
        yield inode, runs.pick(inodes == inode)


def _unknown(events: Array, after: Array, tables: Array) -> None:
    """Of a namespace that is gone the rulesets are unknown."""
