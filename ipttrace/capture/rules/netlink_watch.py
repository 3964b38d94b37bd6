# SPDX-License-Identifier: GPL-2.0-only
"""Watches the rules of nftables and of legacy tables for the netlink engine.

The engine knows each generation's rules by their handles, from the kernel; their
texts are read here, by commands, in a thread of its own.  A change is reported before
the new rules are read, so that a reader never takes old rules for new ones.  Must not
call the engine, or keep a namespace alive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import Table
from ipttrace.capture.netlink.changes import LegacyChange, NftChange, RuleChange
from ipttrace.capture.netlink.names import shown_name
from ipttrace.capture.netlink.nft.dump import Snapshot
from ipttrace.capture.netns import inside, title
from ipttrace.capture.rules import frames, nft_texts
from ipttrace.capture.rules.base import RuleTexts, RuleWatch, cpu_seconds
from ipttrace.capture.rules.frames import Backend, Key
from ipttrace.capture.rules.nft_texts import TableText
from ipttrace.capture.watch import Finding
from ipttrace.netfilter import NFT_FAMILIES
from ipttrace.stream.messages import ChainCounters, ChainRules

_COUNT_EVERY: Final = 2.0  # s
# Counters take a 50th of a processor at most.
_COUNT_SHARE: Final = 49
_WAIT: Final = 0.25
_OWN: Final = "ipttrace-"  # names of the tables that flip, of any ipttrace process

_Content = tuple[int, dict[str, tuple[int | None, int | None, int | None, tuple[int, ...]]]]
"""A table's handle; of each chain the hook, priority, policy and the rules' handles."""


@runtime_checkable
class ReportsChanges(Protocol):
    """An engine that reports each change of the rules that it traces."""

    changes: queue.Queue[RuleChange]


class NetlinkRules(RuleTexts):
    """The agent's handle on a NetlinkRuleWatch."""

    def __init__(self, changes: queue.Queue[RuleChange]) -> None:
        """`changes`: into which the engine puts each change."""
        super().__init__()
        self._changes = changes

    def make(self) -> NetlinkRuleWatch:
        return NetlinkRuleWatch(self._changes, self.first)

    def settled(self, timeout: float) -> bool:
        with self._changes.all_tasks_done:
            return self._changes.all_tasks_done.wait_for(
                lambda: not self._changes.unfinished_tasks, timeout
            )

    def end(self) -> None:
        """Does nothing: no look takes long enough to be woken from."""


class NetlinkRuleWatch(RuleWatch):
    """Reads a namespace's rules whenever the engine reports a change of them."""

    def __init__(self, changes: queue.Queue[RuleChange], first: threading.Event) -> None:
        super().__init__(first)
        self._changes = changes
        self._unfinished = 0  # changes taken from the queue whose rules are still to be read
        self._newest: dict[int, NftChange] = {}
        self._legacy: dict[int, LegacyChange] = {}
        self._since: dict[Key, int] = {}  # generation of the newest rules
        self._due: dict[int, None] = {}  # namespaces to read, in this order
        self._countable: set[int] = set()  # namespaces that have counters
        self._legacy_countable: set[int] = set()
        self._count_at = 0.0
        self._sent_rules: dict[Key, tuple[int, Backend, dict[str, ChainRules]]] = {}
        self._sent_counters: dict[Key, tuple[int, dict[str, ChainCounters]]] = {}

    def close(self) -> None:
        """Does nothing: nothing is held."""

    def look(self) -> Iterator[Finding]:
        if self._due and self._changes.empty():
            yield from self._read(next(iter(self._due)))
            self._settle()
            return
        try:
            change = self._changes.get(timeout=_WAIT)
        except queue.Empty:
            pass
        else:
            self._unfinished += 1
            if isinstance(change, LegacyChange):
                yield from self._legacy_changed(change)
            else:
                yield from self._nft_changed(change)
            self._settle()
            return
        if self._countable and time.monotonic() >= self._count_at:
            begun = cpu_seconds()
            for inode in list(self._countable):
                yield from self._read(inode)
                yield from self._count_legacy(inode)
            rest = max(_COUNT_EVERY, _COUNT_SHARE * (cpu_seconds() - begun))
            self._count_at = time.monotonic() + rest

    def _settle(self) -> None:
        """Marks the changes as done once nothing is left to be read."""
        if self._due:
            return
        self._first.set()
        for _ in range(self._unfinished):
            self._changes.task_done()
        self._unfinished = 0

    def _gone(self, key: Key) -> Finding:
        self._since.pop(key, None)
        return frames.gone(key)

    def _count(self, key: Key, mono: int, chains: dict[str, ChainCounters]) -> Iterator[Finding]:
        since = self._since[key]
        if self._sent_counters.get(key) == (since, chains) or not frames.fits(chains):
            return
        self._sent_counters[key] = (since, chains)
        yield frames.counters(key, since, mono, chains)

    # -- nftables

    def _nft_changed(self, change: NftChange) -> Iterator[Finding]:
        """Reports which tables have changed; their texts are read later."""
        inode = change.inode
        key: Key
        before = self._newest.get(inode)
        if change.snapshot is None:
            for key in [key for key in self._since if key[0] == inode]:
                yield self._gone(key)
            self._newest.pop(inode, None)
            self._due.pop(inode, None)
            self._countable.discard(inode)
            self._legacy.pop(inode, None)
            self._legacy_countable.discard(inode)
            return
        self._newest[inode] = change
        old = {} if before is None or before.snapshot is None else _contents(before.snapshot)
        new = _contents(change.snapshot)
        for family, table in old.keys() - new.keys():
            yield self._gone((inode, NFT_FAMILIES[family], table))
        for (family, table), content in new.items():
            if old.get((family, table)) != content:
                key = (inode, NFT_FAMILIES[family], table)
                self._since[key] = change.number
                yield frames.changed(key, change.number, "nft", change.number)
        yield frames.reported_nft(change.number)
        self._due[inode] = None

    def _read(self, inode: int) -> Iterator[Finding]:
        """Reads the texts and counters of a namespace's newest rules."""
        change = self._newest.get(inode)
        self._due.pop(inode, None)
        if change is None or change.snapshot is None:
            return
        notes: list[str] = []
        try:
            mono = time.monotonic_ns()
            with inside(change.path, inode):
                tables = nft_texts.read(change.snapshot, notes.append)
        except nft_texts.Changed:
            # The engine is about to report it; the change that is being read stays unfinished.
            self._due[inode] = None
            return
        except (FileNotFoundError, ProcessLookupError):
            self._countable.discard(inode)
            return
        except (CaptureError, OSError) as error:
            self._countable.discard(inode)
            yield from self._note(f"rules of {title(change.path, inode)}: {error}")
            return
        for text in notes:
            yield from self._note(text)
        has_counters = False
        for (family, name), table in tables.items():
            key = (inode, NFT_FAMILIES.get(family, ""), _shown(name))
            if family not in NFT_FAMILIES or key not in self._since:
                continue
            yield from self._table(key, table, mono)
            has_counters = has_counters or any(
                any(chain.counters) for chain in table.chains.values()
            )
        if has_counters:
            self._countable.add(inode)

    def _table(self, key: Key, table: TableText, mono: int) -> Iterator[Finding]:
        chains: dict[str, ChainRules] = {
            _shown(name): {
                "policy": chain.policy,
                "rules": [text or "" for text in chain.rules],
            }
            for name, chain in table.chains.items()
        }
        since = self._since[key]
        if self._sent_rules.get(key) != (since, table.backend, chains):
            self._sent_rules[key] = (since, table.backend, chains)
            if not frames.fits(chains):
                yield from self._note(
                    f"table {key[2]} has more than {frames.MOST >> 20} MB of rules:"
                    " rows have no rule texts for it"
                )
                return
            yield frames.rules(key, since, table.backend, mono, chains)
        counted: dict[str, ChainCounters] = {}
        for name, chain in table.chains.items():
            pairs = [pair for pair in chain.counters if pair is not None]
            if len(pairs) < len(chain.counters):
                return  # a rule without a counter: the frame has no way to leave one out
            counted[_shown(name)] = {
                "policy": None if chain.policy is None else (0, 0),
                "rules": pairs,
            }
        yield from self._count(key, mono, counted)

    # -- legacy tables

    def _legacy_changed(self, change: LegacyChange) -> Iterator[Finding]:
        """Reports the legacy tables that have changed, and their rules."""
        inode = change.inode
        key: Key
        before = self._legacy.get(inode)
        old_tables = {} if before is None else before.tables
        self._legacy[inode] = change
        for family, name in old_tables.keys() - change.tables.keys():
            yield self._gone((inode, family, name))
        for (family, name), table in change.tables.items():
            old = old_tables.get((family, name))
            chains = frames.legacy_rules(table)
            if old is not None and frames.legacy_rules(old) == chains:
                continue
            key = (inode, family, name)
            self._since[key] = change.number
            if frames.fits(chains):
                mono = time.monotonic_ns()
                yield frames.rules(key, change.number, "legacy", mono, chains, change.number)
            else:
                yield frames.changed(key, change.number, "legacy", change.number)
        yield frames.reported(change.number)
        if change.tables:
            self._countable.add(inode)
            self._legacy_countable.add(inode)

    def _count_legacy(self, inode: int) -> Iterator[Finding]:
        if inode not in self._legacy_countable:
            return
        known = self._legacy[inode]
        try:
            mono = time.monotonic_ns()
            with inside(known.path, inode):
                tables = {
                    (family, name): table
                    for family in {family for family, _ in known.tables}
                    for name, table in iptables_save.read(family).items()
                }
        except (OSError, CaptureError, iptables_save.Unreadable):
            self._legacy_countable.discard(inode)
            return
        for (family, name), table in tables.items():
            key = (inode, family, name)
            if key in self._since and _same_rules(known.tables.get((family, name)), table):
                yield from self._count(key, mono, frames.legacy_counters(table))


def _shown(name: str) -> str:
    """Returns a table's or chain's name as rows show it."""
    return shown_name(name.encode("utf-8", "surrogateescape"))


def _same_rules(known: Table | None, table: Table) -> bool:
    """Returns whether the counters of `table` belong to the rules that were reported."""
    return known is not None and all(
        name in known and known[name].rules == chain.rules for name, chain in table.items()
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
            found[key][1][chain] = (info.hook, info.priority, info.policy, tuple(info.handles))
    return found
