# SPDX-License-Identifier: GPL-2.0-only
"""Texts of a namespace's nftables rules that were read, by the rules' handles.

A rule cannot change, and its table never uses its handle again: a text that was read once
holds in every ruleset that has the rule, however often the other rules are replaced.  Only
a chain's new name changes the texts of rules that jump to it.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.capture.rules.frames import Backend
from ipttrace.capture.rules.nft_texts import IPTABLES, NFT, POLICIES, TableText
from ipttrace.stream.messages import ChainRules

_Key = tuple[int, str]
"""NFPROTO_* and name of a table."""


@dataclass(slots=True)
class _Known:
    """What is known of one table."""

    backend: Backend = NFT
    texts: dict[int, str] = field(default_factory=dict)  # by a rule's handle


class KnownTexts:
    """The texts of one namespace, of the rules in its newest snapshot only."""

    def __init__(self) -> None:
        self._tables: dict[_Key, _Known] = {}
        self._newest = Snapshot(0, {}, {})

    def change(self, snapshot: Snapshot) -> None:
        """Forgets what does not hold in the new `snapshot`."""
        for key in self._changed(self._newest, snapshot) & self._tables.keys():
            del self._tables[key]
        self._newest = snapshot
        handles = _handles(snapshot)
        for key, known in self._tables.items():
            for handle in known.texts.keys() - handles.get(key, set()):
                del known.texts[handle]

    def learn(self, snapshot: Snapshot, read: dict[_Key, TableText]) -> None:
        """Adds the texts in `read`, whose chains are as in `snapshot`, maybe an older one."""
        changed = self._changed(snapshot, self._newest)
        here = _handles(self._newest)
        for key, table in read.items():
            if key in changed:
                continue
            known = self._tables.setdefault(key, _Known())
            known.backend = table.backend
            for name, chain in table.chains.items():
                handles = snapshot.chains[(*key, name)].handles
                for rule, text in zip(handles, chain.rules, strict=True):
                    if text is not None and rule in here[key]:
                        known.texts[rule] = text

    @staticmethod
    def _changed(old: Snapshot, new: Snapshot) -> set[_Key]:
        """Returns the tables of `old` whose texts do not hold in `new`."""
        changed = {
            key
            for key, table in old.tables.items()
            if key not in new.tables or new.tables[key].handle != table.handle
        }
        names = {(*key[:2], info.handle): key[2] for key, info in new.chains.items()}
        for (family, table, name), info in old.chains.items():
            # Jumps to a chain have its name in their texts.
            if names.get((family, table, info.handle), name) != name:
                changed.add((family, table))
        return changed

    def has(self, key: _Key) -> bool:
        """Returns whether the table has been read."""
        return key in self._tables

    def backend(self, key: _Key) -> Backend:
        """Returns which tool made the table; NFT if it is unknown."""
        known = self._tables.get(key)
        return NFT if known is None else known.backend

    def chain(self, key: _Key, info: ChainInfo) -> tuple[ChainRules, list[int]]:
        """Returns a chain of the table `key`, and the numbers of the rules without a text."""
        known = self._tables.get(key)
        texts = {} if known is None else known.texts
        policy = None if info.hook is None else POLICIES.get(info.policy or 0, "accept")
        if policy is not None and self.backend(key) == IPTABLES:
            policy = policy.upper()
        rules = [texts.get(handle, "") for handle in info.handles]
        unknown = [at for at, handle in enumerate(info.handles, 1) if handle not in texts]
        return {"policy": policy, "rules": rules}, unknown


def _handles(snapshot: Snapshot) -> dict[_Key, set[int]]:
    """Returns the rules' handles of each table."""
    found: dict[_Key, set[int]] = {key: set() for key in snapshot.tables}
    for key, info in snapshot.chains.items():
        found.setdefault(key[:2], set()).update(info.handles)
    return found
