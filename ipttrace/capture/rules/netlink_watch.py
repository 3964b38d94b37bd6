# SPDX-License-Identifier: GPL-2.0-only
"""The texts of nftables' rules, for the rows of the netlink engine: a watch.

The engine knows each generation's rules by their handles, from the kernel; what
they say is read here, by commands, in a thread of its own.  A change is told of
first, so that a reader never takes old rules for new ones.  Must not touch the
engine, or keep a namespace alive.
"""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ipttrace.capture import iptables_save as ruleset_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import Table, inside
from ipttrace.capture.netlink.calls import short
from ipttrace.capture.netlink.nft.dump import Snapshot
from ipttrace.capture.netns import title
from ipttrace.capture.rules import nft_texts as nft_ruleset
from ipttrace.capture.rules.kernel_watch import fits
from ipttrace.capture.rules.nft_texts import TableText
from ipttrace.capture.watch import Seen
from ipttrace.netfilter import NFT_FAMILIES
from ipttrace.stream.frames import Kind

_COUNT_EVERY: Final = 2.0  # s
# Counters are read for a 50th of a processor at most.
_COUNT_SHARE: Final = 49
_WAIT: Final = 0.25
_OWN: Final = "ipttrace-"  # tables that flip, of whatever process


class Change(NamedTuple):
    """The ruleset of the namespace `inode` at `path` is another: stream's generation `number`.

    No snapshot: it is not known, or the namespace is gone.
    """

    path: str
    inode: int
    snapshot: Snapshot | None
    number: int


class LegacyChange(NamedTuple):
    """The legacy tables of a namespace are others: `tables` by family, 4 or 6, and name."""

    path: str
    inode: int
    tables: dict[tuple[int, str], Table]
    number: int


_Key = tuple[int, int | str, str]  # namespace, family, table


class Texts:
    """To be made by the agent; `make` is for the watch's own thread."""

    def __init__(self, changes: queue.Queue[Change | LegacyChange]) -> None:
        self.first = threading.Event()  # set after the first look, whatever it found
        self._changes = changes

    def make(self) -> TextWatch:
        """The watch."""
        return TextWatch(self._changes, self.first)

    def settled(self, timeout: float) -> bool:
        """Whether all changes have been told of and read, within so many seconds."""
        with self._changes.all_tasks_done:
            return self._changes.all_tasks_done.wait_for(
                lambda: not self._changes.unfinished_tasks, timeout
            )

    def end(self) -> None:
        """A look never takes long enough to be woken from."""


class TextWatch:
    """See Watch: `look` waits by itself until there is something to do."""

    def __init__(self, changes: queue.Queue[Change | LegacyChange], first: threading.Event) -> None:
        self.interval = 0.0
        self._changes = changes
        self._first = first
        self._newest: dict[int, Change] = {}
        self._since: dict[_Key, int] = {}
        self._due: dict[int, None] = {}
        self._taken = 0  # changes that are not yet told of and read
        self._legacy: dict[int, dict[tuple[int, str], Table]] = {}
        self._legacy_paths: dict[int, str] = {}
        self._counted: dict[_Key, Any] = {}  # what was told last
        self._texts: dict[_Key, Any] = {}
        self._countable: set[int] = set()
        self._count_at = 0.0
        self._said: set[str] = set()

    def close(self) -> None:
        """Nothing is held."""

    def look(self) -> Iterator[Seen]:
        """What has changed; what it says; the counters."""
        if self._due and self._changes.empty():
            yield from self._read(next(iter(self._due)))
            self._through()
            return
        try:
            change = self._changes.get(timeout=_WAIT)
        except queue.Empty:
            pass
        else:
            self._taken += 1
            if isinstance(change, LegacyChange):
                yield from self._tell_legacy(change)
            else:
                yield from self._mark(change)
            self._through()
            return
        if self._countable and time.monotonic() >= self._count_at:
            begun = _spent()
            for inode in list(self._countable):
                yield from self._read(inode)
                yield from self._count_legacy(inode)
            rest = max(_COUNT_EVERY, _COUNT_SHARE * (_spent() - begun))
            self._count_at = time.monotonic() + rest

    def _through(self) -> None:
        """Says so, where nothing is left to be read."""
        if self._due:
            return
        self._first.set()
        for _ in range(self._taken):
            self._changes.task_done()
        self._taken = 0

    def _mark(self, change: Change) -> Iterator[Seen]:
        """Which tables are others now."""
        inode = change.inode
        before = self._newest.get(inode)
        if change.snapshot is None:
            for gone in [key for key in self._since if key[0] == inode]:
                yield self._gone(gone)
            self._newest.pop(inode, None)
            self._due.pop(inode, None)
            self._countable.discard(inode)
            self._legacy_paths.pop(inode, None)
            return
        self._newest[inode] = change
        old = {} if before is None or before.snapshot is None else _contents(before.snapshot)
        new = _contents(change.snapshot)
        for table in old.keys() - new.keys():
            yield self._gone((inode, NFT_FAMILIES[table[0]], table[1]))
        for table, content in new.items():
            if old.get(table) != content:
                key: _Key = (inode, NFT_FAMILIES[table[0]], table[1])
                self._since[key] = change.number
                yield self._frame(key, upto=change.number)
        yield Kind.RULES, {"upto": change.number, "of": "nft"}
        self._due[inode] = None

    def _tell_legacy(self, change: LegacyChange) -> Iterator[Seen]:
        """The legacy tables that are others now, and what they say."""
        inode = change.inode
        before = self._legacy.get(inode, {})
        self._legacy[inode] = change.tables
        for family, name in before.keys() - change.tables.keys():
            yield self._gone((inode, family, name))
        for (family, name), table in change.tables.items():
            old = before.get((family, name))
            texts = {chain: (one.policy, one.rules) for chain, one in table.items()}
            if (
                old is None
                or {chain: (one.policy, one.rules) for chain, one in old.items()} != texts
            ):
                key = (inode, family, name)
                self._since[key] = change.number
                chains = {
                    chain: {"policy": policy, "rules": rules}
                    for chain, (policy, rules) in texts.items()
                }
                if fits(chains):
                    yield self._frame(key, backend="legacy", chains=chains, upto=change.number)
                else:
                    yield self._frame(key, backend="legacy", upto=change.number)
        yield Kind.RULES, {"upto": change.number}
        if change.tables:
            self._legacy_paths[inode] = change.path
            self._countable.add(inode)

    def _count_legacy(self, inode: int) -> Iterator[Seen]:
        path = self._legacy_paths.get(inode)
        if path is None:
            return
        try:
            mono = time.monotonic_ns()
            with inside(path, inode):
                tables = {
                    (family, name): table
                    for family in {family for family, _ in self._legacy[inode]}
                    for name, table in ruleset_save.read(family).items()
                }
        except (OSError, CaptureError, ruleset_save.Unreadable):
            self._legacy_paths.pop(inode, None)
            return
        for (family, name), table in tables.items():
            known = self._legacy[inode].get((family, name))
            key = (inode, family, name)
            if known is None or key not in self._since:
                continue
            if any(
                known.get(chain) is None or known[chain].rules != one.rules
                for chain, one in table.items()
            ):
                continue  # others than those that were told
            counted = {
                chain: {"policy": one.counted, "rules": one.counters}
                for chain, one in table.items()
            }
            yield from self._count(key, counted, mono)

    def _gone(self, key: _Key) -> Seen:
        self._since.pop(key, None)
        netns, family, table = key
        frame = {"netns": netns, "family": family, "table": table}
        return Kind.RULES, {**frame, "gone": True}

    def _read(self, inode: int) -> Iterator[Seen]:
        """The texts of a namespace's newest rules."""
        change = self._newest.get(inode)
        self._due.pop(inode, None)
        if change is None or change.snapshot is None:
            return
        notes: list[str] = []
        try:
            mono = time.monotonic_ns()
            with inside(change.path, inode):
                tables = nft_ruleset.read(change.snapshot, notes.append)
        except nft_ruleset.Changed:
            # We are about to be told of it; the first look is over only once it was read.
            self._due[inode] = None
            return
        except (FileNotFoundError, ProcessLookupError):
            self._countable.discard(inode)
            return
        except (CaptureError, OSError) as error:
            self._countable.discard(inode)
            yield from self._say(f"rules of {title(change.path, inode)}: {error}")
            return
        for text in notes:
            yield from self._say(text)
        counts = False
        for (family, name), table in tables.items():
            key = (inode, NFT_FAMILIES.get(family, ""), alias(name))
            if family not in NFT_FAMILIES or key not in self._since:
                continue
            yield from self._table(key, table, mono)
            counts = counts or any(any(chain.counters) for chain in table.chains.values())
        if counts:
            self._countable.add(inode)

    def _table(self, key: _Key, table: TableText, mono: int) -> Iterator[Seen]:
        chains = {
            alias(name): {"policy": chain.policy, "rules": [text or "" for text in chain.rules]}
            for name, chain in table.chains.items()
        }
        said = (self._since[key], table.backend, chains)
        if self._texts.get(key) != said:
            self._texts[key] = said
            if not fits(chains):
                yield from self._say(
                    f"table {key[2]} has too many rules: their texts are not known"
                )
                return
            yield self._frame(key, mono=mono, backend=table.backend, chains=chains)
        if any(None in chain.counters for chain in table.chains.values()):
            return
        counted = {
            alias(name): {
                "policy": None if chain.policy is None else [0, 0],
                "rules": [list(pair) for pair in chain.counters if pair is not None],
            }
            for name, chain in table.chains.items()
        }
        yield from self._count(key, counted, mono)

    def _count(self, key: _Key, counted: dict[str, Any], mono: int) -> Iterator[Seen]:
        if self._counted.get(key) == counted or not fits(counted):
            return
        self._counted[key] = counted
        netns, family, name = key
        yield (
            Kind.COUNTERS,
            {
                "netns": netns,
                "family": family,
                "table": name,
                "mono": mono,
                "since": self._since[key],
                "chains": counted,
            },
        )

    def _frame(self, key: _Key, **more: Any) -> Seen:
        netns, family, table = key
        frame = {
            "netns": netns,
            "family": family,
            "table": table,
            "backend": "nft",
            "since": self._since[key],
            "mono": time.monotonic_ns(),
            **more,
        }
        return Kind.RULES, frame

    def _say(self, text: str) -> Iterator[Seen]:
        """A note, once."""
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            yield Kind.NOTE, {"level": "warn", "text": text}


def alias(name: str) -> str:
    """A name as records have it."""
    return short(name.encode("utf-8", "surrogateescape")).decode("utf-8", "backslashreplace")


def _contents(snapshot: Snapshot) -> dict[tuple[int, str], Any]:
    """What makes a table the same as before, for each; not those that flip."""
    found: dict[tuple[int, str], Any] = {
        (family, alias(name)): (info.handle, {})
        for (family, name), info in snapshot.tables.items()
        if family in NFT_FAMILIES and not name.startswith(_OWN)
    }
    for (family, table, chain), info in snapshot.chains.items():
        if (family, alias(table)) in found:
            found[family, alias(table)][1][chain] = (
                info.hook,
                info.priority,
                info.policy,
                tuple(info.handles),
            )
    return found


def _spent() -> float:
    """CPU seconds of this thread and of all that it has run."""
    of = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + of.ru_utime + of.ru_stime
