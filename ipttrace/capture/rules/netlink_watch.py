# SPDX-License-Identifier: GPL-2.0-only
"""Watches the rules of nftables and of legacy tables for the netlink engine.

The engine knows each generation's rules by their handles, from the kernel.  The agent's
thread reports each change (`NetlinkRules`), before the rows that depend on it, with the texts
that are known by handle; the others are read here, by commands, in a thread of its own
(`NetlinkRuleWatch`).  Must not call the engine, or keep a namespace alive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import Table
from ipttrace.capture.legacy_texts import TextTable
from ipttrace.capture.netlink.changes import LegacyChange, NftChange, RuleChange
from ipttrace.capture.netlink.names import shown_name
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.capture.netns import inside, title
from ipttrace.capture.rules import frames, nft_texts
from ipttrace.capture.rules.base import RuleTexts, RuleWatch, cpu_seconds
from ipttrace.capture.rules.frames import Backend, Key
from ipttrace.capture.rules.nft_known import KnownTexts
from ipttrace.capture.rules.nft_texts import TableText
from ipttrace.capture.watch import Finding
from ipttrace.netfilter import NFT_FAMILIES
from ipttrace.stream.messages import ChainCounters, ChainRules

_COUNT_EVERY: Final = 2.0  # s
# Counters take a 50th of a processor at most.
_COUNT_SHARE: Final = 49
_WAIT: Final = 0.25
_OWN: Final = "ipttrace-"  # names of the tables that flip, of any ipttrace process

_Content = tuple[int, dict[str, ChainInfo]]
"""A table's handle, and its chains."""

_Numbers = dict[str, list[int]]
"""By chain."""

_Version = tuple[int, Backend, dict[str, ChainRules], _Numbers, _Numbers]
"""A table's generation, backend and chains, numbers of rules without a known text, handles."""


@runtime_checkable
class ReportsChanges(Protocol):
    """An engine that reports each change of the rules that it traces."""

    changes: queue.Queue[RuleChange]


class _Shared:
    """What the agent's thread and the watch's share; `lock` guards all of it."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.ended = False
        self.newest: dict[int, NftChange] = {}  # by namespace
        self.legacy: dict[int, LegacyChange] = {}
        self.known: dict[int, KnownTexts] = {}
        self.since: dict[Key, int] = {}  # generation of the newest rules
        self.due: dict[int, None] = {}  # namespaces to read, in this order
        self.tried: set[int] = set()  # namespaces that have been read, perhaps in vain
        self.reading = False
        self.read_at: dict[int, int] = {}  # namespaces whose new texts are not reported: when, ns


class NetlinkRules(RuleTexts):
    """The agent's handle on a NetlinkRuleWatch; reports the changes and the texts."""

    def __init__(self, changes: queue.Queue[RuleChange]) -> None:
        """`changes`: into which the engine puts each change."""
        super().__init__()
        self._changes = changes
        self._shared = _Shared()
        self._sent: dict[Key, _Version] = {}
        self._too_large: set[Key] = set()

    def make(self) -> NetlinkRuleWatch:
        return NetlinkRuleWatch(self._shared, self.first)

    def settled(self, timeout: float) -> bool:
        def done() -> bool:
            shared = self._shared
            return not (shared.due or shared.reading or shared.read_at or self._changes.qsize())

        with self._shared.lock:
            return self._shared.lock.wait_for(done, timeout)

    def end(self) -> None:
        with self._shared.lock:
            self._shared.ended = True
            self._shared.lock.notify_all()

    def report(self) -> list[Finding]:
        """Returns the changes that the engine has put, and the texts that were read since."""
        found: list[Finding] = []
        with self._shared.lock:
            with contextlib.suppress(queue.Empty):
                while True:
                    change = self._changes.get_nowait()
                    if isinstance(change, LegacyChange):
                        found += self._legacy_changed(change)
                    else:
                        found += self._nft_changed(change)
            for inode, mono in self._shared.read_at.items():
                found += self._texts(inode, mono)
            self._shared.read_at.clear()
            if not (self._shared.due.keys() - self._shared.tried or self._shared.reading):
                self.first.set()
            self._shared.lock.notify_all()
        return found

    def _gone(self, key: Key) -> Finding:
        self._shared.since.pop(key, None)
        self._sent.pop(key, None)
        return frames.gone(key)

    # -- nftables

    def _nft_changed(self, change: NftChange) -> Iterator[Finding]:
        """Reports which tables have changed; unknown texts are read later."""
        shared, inode = self._shared, change.inode
        key: Key
        before = shared.newest.get(inode)
        if change.snapshot is None:
            for key in [key for key in shared.since if key[0] == inode]:
                yield self._gone(key)
            for each in (shared.newest, shared.due, shared.legacy, shared.known, shared.read_at):
                each.pop(inode, None)
            return
        shared.newest[inode] = change
        known = shared.known.setdefault(inode, KnownTexts())
        known.change(change.snapshot)
        old = {} if before is None or before.snapshot is None else _contents(before.snapshot)
        new = _contents(change.snapshot)
        for family, table in old.keys() - new.keys():
            yield self._gone((inode, NFT_FAMILIES[family], table))
        for (family, table), content in new.items():
            if old.get((family, table)) != content:
                key = (inode, NFT_FAMILIES[family], table)
                shared.since[key] = change.number
                yield frames.changed(key, change.number, "nft", change.number)
        if before is not None:
            yield from self._texts(inode, time.monotonic_ns())
        yield frames.reported_nft(change.number)
        shared.due[inode] = None

    def _texts(self, inode: int, mono: int) -> Iterator[Finding]:
        """Reports the namespace's newest rules, as far as they are known at `mono` ns."""
        shared = self._shared
        change = shared.newest.get(inode)
        if change is None or change.snapshot is None:
            return
        tables: dict[tuple[int, str], dict[str, ChainRules]] = {
            key: {} for key in change.snapshot.tables
        }
        without: dict[tuple[int, str], _Numbers] = {key: {} for key in tables}
        handles: dict[tuple[int, str], _Numbers] = {key: {} for key in tables}
        known = shared.known[inode]
        for (family, table, name), info in change.snapshot.chains.items():
            if (family, table) in tables:
                chain, numbers = known.chain((family, table), info)
                tables[family, table][_shown(name)] = chain
                handles[family, table][_shown(name)] = list(info.handles)
                if numbers:
                    without[family, table][_shown(name)] = numbers
        for (family, table), chains in tables.items():
            unknown, named = without[family, table], handles[family, table]
            key = (inode, NFT_FAMILIES.get(family, ""), _shown(table))
            since = shared.since.get(key)
            version = (since or 0, known.backend((family, table)), chains, unknown, named)
            if since is None or not known.has((family, table)) or self._sent.get(key) == version:
                continue
            self._sent[key] = version
            if frames.fits(chains, named):
                yield frames.rules(
                    key, since, version[1], mono, chains, unknown=unknown, handles=named
                )
            elif key not in self._too_large:
                self._too_large.add(key)
                yield frames.warning(
                    f"table {key[2]} has more than {frames.MOST >> 20} MB of rules:"
                    " rows have no rule texts for it"
                )

    # -- legacy tables

    def _legacy_changed(self, change: LegacyChange) -> Iterator[Finding]:
        """Reports the legacy tables that have changed, and their rules."""
        inode = change.inode
        key: Key
        before = self._shared.legacy.get(inode)
        old_tables = {} if before is None else before.tables
        self._shared.legacy[inode] = change
        for family, name in old_tables.keys() - change.tables.keys():
            # It may exist, with rules that could not be read: those of before must not hold.
            key = (inode, family, name)
            yield frames.changed(key, change.number, "legacy", change.number)
            yield self._gone(key)
        for (family, name), table in change.tables.items():
            if old_tables.get((family, name)) == table:
                continue
            key = (inode, family, name)
            self._shared.since[key] = change.number
            chains, unknown = frames.legacy_rules(table)
            if frames.fits(chains):
                mono = time.monotonic_ns()
                yield frames.rules(
                    key, change.number, "legacy", mono, chains, change.number, unknown
                )
            else:
                yield frames.changed(key, change.number, "legacy", change.number)
        yield frames.reported(change.number)


class NetlinkRuleWatch(RuleWatch):
    """Reads a namespace's texts whenever they are due, and counters now and then."""

    def __init__(self, shared: _Shared, first: threading.Event) -> None:
        super().__init__(first)
        self._shared = shared
        self._countable: set[int] = set()  # namespaces that have counters
        self._count_at = 0.0
        self._sent_counters: dict[Key, tuple[int, dict[str, ChainCounters]]] = {}

    def close(self) -> None:
        """Does nothing: nothing is held."""

    def look(self) -> Iterator[Finding]:
        shared = self._shared
        with shared.lock:
            shared.lock.wait_for(lambda: shared.due or shared.ended, _WAIT)
            inode = next(iter(shared.due), None)
            if inode is not None:
                del shared.due[inode]
            shared.reading = inode is not None
        if shared.ended:
            return
        if inode is not None:
            try:
                yield from self._read(inode)
            finally:
                with shared.lock:
                    shared.tried.add(inode)
                    shared.reading = False
                    shared.lock.notify_all()
        elif time.monotonic() >= self._count_at:
            begun = cpu_seconds()
            with shared.lock:
                gone = self._countable - shared.newest.keys()
                legacy = [one for one in shared.legacy.values() if one.tables]
            self._countable -= gone
            for each in list(self._countable):
                yield from self._read(each)
            for change in legacy:
                yield from self._count_legacy(change)
            rest = max(_COUNT_EVERY, _COUNT_SHARE * (cpu_seconds() - begun))
            self._count_at = time.monotonic() + rest

    def _count(self, key: Key, mono: int, chains: dict[str, ChainCounters]) -> Iterator[Finding]:
        with self._shared.lock:
            since = self._shared.since.get(key)
        if since is None or self._sent_counters.get(key) == (since, chains):
            return
        if frames.fits(chains):
            self._sent_counters[key] = (since, chains)
            yield frames.counters(key, since, mono, chains)

    def _read(self, inode: int) -> Iterator[Finding]:
        """Reads the texts and counters of a namespace's newest rules."""
        shared = self._shared
        with shared.lock:
            change = shared.newest.get(inode)
        if change is None or change.snapshot is None:
            return
        notes: list[str] = []
        mono = time.monotonic_ns()
        try:
            with inside(change.path, inode):
                tables, same = nft_texts.read_unchanged(change.snapshot, notes.append)
        except nft_texts.Changed:
            tables, same = {}, False
        except (FileNotFoundError, ProcessLookupError):
            self._countable.discard(inode)
            return
        except (CaptureError, OSError) as error:
            self._countable.discard(inode)
            yield from self._note(f"rules of {title(change.path, inode)}: {error}")
            return
        for text in notes:
            yield from self._note(text)
        with shared.lock:
            newest = shared.newest.get(inode)
            if newest is None:
                return
            shared.known[inode].learn(change.snapshot, tables)
            shared.read_at[inode] = mono
            if not same:
                # The engine reports the change, or has done so.
                shared.due[inode] = None
                return
            if newest is not change:
                return
        for (family, name), table in tables.items():
            counted = _counted(table)
            if counted:
                self._countable.add(inode)
                key = (inode, NFT_FAMILIES.get(family, ""), _shown(name))
                yield from self._count(key, mono, counted)

    def _count_legacy(self, known: LegacyChange) -> Iterator[Finding]:
        try:
            mono = time.monotonic_ns()
            with inside(known.path, known.inode):
                tables = {
                    (family, name): table
                    for family in {family for family, _ in known.tables}
                    for name, table in iptables_save.read(family).items()
                }
        except (OSError, CaptureError, iptables_save.Unreadable):
            return
        for (family, name), table in tables.items():
            if _same_rules(known.tables.get((family, name)), table):
                key = (known.inode, family, name)
                yield from self._count(key, mono, frames.legacy_counters(table))


def _counted(table: TableText) -> dict[str, ChainCounters]:
    """Returns the chains as a COUNTERS frame holds them; none if nothing counts."""
    found: dict[str, ChainCounters] = {
        _shown(name): {"policy": chain.policy_counters, "rules": chain.counters}
        for name, chain in table.chains.items()
    }
    counts = any(chain["policy"] or any(chain["rules"]) for chain in found.values())
    return found if counts else {}


def _shown(name: str) -> str:
    """Returns a table's or chain's name as rows show it."""
    return shown_name(name.encode("utf-8", "surrogateescape"))


def _same_rules(known: TextTable | None, table: Table) -> bool:
    """Returns whether the counters of `table` belong to the rules that were reported."""
    return known is not None and all(
        name in known and not known[name].unknown and known[name].rules == chain.rules
        for name, chain in table.items()
    )


def _contents(snapshot: Snapshot) -> dict[tuple[int, str], _Content]:
    """Returns, for each table except those that flip, what differs if its rules do."""
    found: dict[tuple[int, str], _Content] = {
        (family, _shown(name)): (info.handle, {})
        for (family, name), info in snapshot.tables.items()
        if family in NFT_FAMILIES and not name.startswith(_OWN)
    }
    for (family, table, chain), info in snapshot.chains.items():
        key = (family, _shown(table))
        if key in found:
            found[key][1][chain] = info
    return found
