# SPDX-License-Identifier: GPL-2.0-only
"""Texts of a namespace's nftables rules that were read, by the rules' handles and contents.

A text that was read once holds in every ruleset that has the same rule, however often the
others are replaced.  `iptables -R` puts another rule in the place of one and keeps the
handle, so that contents are compared too; a chain's new name changes the texts of rules
that jump to it.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot
from ipttrace.capture.rules.frames import Backend
from ipttrace.capture.rules.nft_texts import IPTABLES, NFT, POLICIES, TableText
from ipttrace.stream.messages import ChainRules

_Key = tuple[int, str]
"""NFPROTO_* and name of a table."""

_Rule = tuple[int, int]
"""Handle and contents of a rule."""


@dataclass(slots=True)
class _Known:
    """What is known of one table."""

    backend: Backend = NFT
    texts: dict[_Rule, str] = field(default_factory=dict)


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
        rules = _all_rules(snapshot)
        for key, known in self._tables.items():
            for rule in known.texts.keys() - rules.get(key, set()):
                del known.texts[rule]

    def learn(self, snapshot: Snapshot, read: dict[_Key, TableText]) -> None:
        """Adds the texts in `read`, whose chains are as in `snapshot`, maybe an older one."""
        changed = self._changed(snapshot, self._newest)
        here = _all_rules(self._newest)
        for key, table in read.items():
            if key in changed:
                continue
            known = self._tables.setdefault(key, _Known())
            known.backend = table.backend
            for name, chain in table.chains.items():
                rules = _rules(snapshot.chains[(*key, name)])
                for rule, text in zip(rules, chain.rules, strict=True):
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
        here = _rules(info)
        rules = [texts.get(rule, "") for rule in here]
        unknown = [at for at, rule in enumerate(here, 1) if rule not in texts]
        return {"policy": policy, "rules": rules}, unknown


def _rules(info: ChainInfo) -> list[_Rule]:
    return list(zip(info.handles, info.contents, strict=True))


def _all_rules(snapshot: Snapshot) -> dict[_Key, set[_Rule]]:
    """Returns the rules of each table."""
    found: dict[_Key, set[_Rule]] = {key: set() for key in snapshot.tables}
    for key, info in snapshot.chains.items():
        found.setdefault(key[:2], set()).update(_rules(info))
    return found
