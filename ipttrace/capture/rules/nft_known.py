# SPDX-License-Identifier: GPL-2.0-only
"""Texts of a namespace's nftables rules that were read, by the rules' contents.

A text that was read once holds for each rule with the same content, however often the
others are replaced, and whatever its handle is: a chain that is flushed and filled again
has equal rules under new handles.  `iptables -R` puts another rule in the place of one and
keeps the handle.  A chain's new name changes the texts of rules that jump to it.  Must not
do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.capture.rules.frames import Backend
from ipttrace.capture.rules.nft_texts import IPTABLES, NFT, POLICIES, TableText
from ipttrace.stream.messages import ChainRules

_Key = tuple[int, str]
"""NFPROTO_* and name of a table."""

# Texts that are kept of a table: of rules that are gone as well, because they may come again.
_MOST: Final = 1 << 16
_MOST_TABLES: Final = 256


@dataclass(slots=True)
class _Known:
    """What is known of one table: its texts by the rules' contents."""

    backend: Backend = NFT
    texts: dict[int, str] = field(default_factory=dict)


class KnownTexts:
    """The texts of one namespace."""

    def __init__(self) -> None:
        self._tables: dict[_Key, _Known] = {}
        self._newest = Snapshot(0, {}, {})

    def change(self, snapshot: Snapshot) -> None:
        """Forgets what does not hold in the new `snapshot`."""
        for key in _renamed(self._newest, snapshot) & self._tables.keys():
            del self._tables[key]
        self._newest = snapshot
        for key in list(self._tables):
            if len(self._tables) > _MOST_TABLES and key not in snapshot.tables:
                del self._tables[key]
        for key, known in self._tables.items():
            if len(known.texts) > _MOST:
                rules = _all_rules(snapshot, key)
                known.texts = {one: text for one, text in known.texts.items() if one in rules}

    def learn(self, snapshot: Snapshot, read: dict[_Key, TableText]) -> None:
        """Adds the texts in `read`, whose chains are as in `snapshot`, maybe an older one."""
        renamed = _renamed(snapshot, self._newest)
        for key, table in read.items():
            if key in renamed:
                continue
            known = self._tables.setdefault(key, _Known())
            known.backend = table.backend
            for name, chain in table.chains.items():
                rules = snapshot.chains[(*key, name)].contents
                for rule, text in zip(rules, chain.rules, strict=True):
                    if text is not None:
                        known.texts[rule] = text

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
        rules = [texts.get(rule, "") for rule in info.contents]
        unknown = [at for at, rule in enumerate(info.contents, 1) if rule not in texts]
        return {"policy": policy, "rules": rules}, unknown


def _renamed(old: Snapshot, new: Snapshot) -> set[_Key]:
    """Returns the tables of `old` that have chains with other names in `new`."""
    renamed = set()
    names = {(*key[:2], info.handle): key[2] for key, info in new.chains.items()}
    for (family, table, name), info in old.chains.items():
        same = new.tables.get((family, table)) == old.tables.get((family, table))
        # Jumps to a chain have its name in their texts.
        if same and names.get((family, table, info.handle), name) != name:
            renamed.add((family, table))
    return renamed


def _all_rules(snapshot: Snapshot, key: _Key) -> set[int]:
    """Returns the contents of a table's rules."""
    return {
        rule
        for where, info in snapshot.chains.items()
        if where[:2] == key
        for rule in info.contents
    }
