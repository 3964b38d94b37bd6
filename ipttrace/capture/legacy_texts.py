# SPDX-License-Identifier: GPL-2.0-only
"""Texts of legacy rules that iptables-save printed, by the rules' bytes.

A table is always replaced as one piece, whatever changed in it: a rule that has the same
bytes as one whose text is known has that text.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ipttrace.capture import iptables_save
from ipttrace.capture.xtables import Chain, Chains

# Texts that are kept: of rules that are gone as well, because they may come again.
_MOST: Final = 1 << 16


@dataclass(slots=True)
class TextChain:
    """A chain: its policy, its rules' texts, and the numbers of those that are not known."""

    policy: str | None
    rules: list[str] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)


TextTable = dict[str, TextChain]
"""Chains by name."""


class LegacyTexts:
    """The texts known in one namespace, of one IP version."""

    def __init__(self) -> None:
        self.epoch = 0  # increases whenever a set's index may belong to another set
        self._texts: dict[int, str] = {}
        self._sets: dict[int, str] = {}  # of rules that name sets

    def forget_sets(self) -> None:
        """Forgets the texts that name sets: rules were replaced of which nothing is known."""
        self.epoch += 1
        self._sets.clear()

    def replaced(self, tables: list[Chains]) -> None:
        """Forgets what may not hold in `tables`, all that there are.

        A rule has the index of a set: once no rule has it, it may be another set's.
        """
        if self._sets:
            present = {rule for table in tables for chain in table.values() for rule in chain.sets}
            kept = {one: text for one, text in self._sets.items() if one in present}
            self.epoch += len(kept) < len(self._sets)
            self._sets = kept

    def learn(self, chains: Chains, printed: iptables_save.Table) -> bool:
        """Adds the texts of `printed`, a table whose entries were `chains`.

        Returns whether some were not known.
        """
        new = False
        for name, chain in printed.items():
            entries = chains.get(name)
            if entries is None or len(entries.contents) != len(chain.rules):
                continue
            for rule, text in zip(entries.contents, chain.rules, strict=True):
                new = new or self._of(rule) != text
                (self._sets if rule in entries.sets else self._texts)[rule] = text
        return new

    def bound(self, tables: list[Chains]) -> None:
        """Forgets the texts of rules that are gone, oldest first, if there are too many."""
        if len(self._texts) <= _MOST:
            return
        present = {rule for table in tables for one in table.values() for rule in one.contents}
        for one in list(self._texts):
            if len(self._texts) <= _MOST // 2:
                return
            if one not in present:
                del self._texts[one]

    def knows(self, chains: Chains) -> bool:
        """Returns whether all texts of a table are known."""
        return all(self._of(rule) is not None for one in chains.values() for rule in one.contents)

    def table(self, chains: Chains, epoch: int | None = None) -> TextTable:
        """Returns the texts of a table, as far as they are known.

        `epoch`: when the table was read, if that was earlier; else now.
        """
        known = self._of if epoch in (None, self.epoch) else self._texts.get
        return {name: _chain(chain, known) for name, chain in chains.items()}

    def _of(self, rule: int) -> str | None:
        text = self._texts.get(rule)
        return self._sets.get(rule) if text is None else text


def _chain(chain: Chain, known: Callable[[int], str | None]) -> TextChain:
    found = [known(rule) for rule in chain.contents]
    return TextChain(
        chain.policy,
        ["" if text is None else text for text in found],
        [number for number, text in enumerate(found, 1) if text is None],
    )


def common(*tables: Chains) -> Chains:
    """Returns the chains that are the same in all `tables`."""
    first, *others = tables
    return {
        name: chain
        for name, chain in first.items()
        if all(one.get(name) == chain for one in others)
    }


def printed_texts(printed: iptables_save.Table) -> TextTable:
    """Returns the texts of a table as iptables-save printed it."""
    return {name: TextChain(chain.policy, list(chain.rules)) for name, chain in printed.items()}
