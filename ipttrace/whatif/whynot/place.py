# SPDX-License-Identifier: GPL-2.0-only
"""RULE, in words that people know, to a rule of the copy.

    filter FORWARD 3            iptables, of either kind; of ip6tables if the packet is IPv6
    legacy filter FORWARD 3     if there are both kinds
    inet filter input 3         nftables, by its number in the chain
    inet filter input handle 7  and by its handle

Must not do I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ipttrace.text import clean
from ipttrace.trace.rules import NFT, Table, family_name
from ipttrace.whatif.errors import WhatIfError

FORMS: Final = "filter FORWARD 3, inet filter input 3, inet filter input handle 7"
_FAMILY: Final = r"(?:(legacy|ip|ip6|inet|arp|bridge|netdev)\s+)?"
_RULE: Final = re.compile(
    _FAMILY + r"(\S{1,255})\s+(\S{1,255})\s+(?:(rule|handle)\s+)?([0-9]{1,9})(?=\s|$)"
)
_IP: Final = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class Words:
    """A rule as named: `family` may be "", `number` counts from 1 or is a handle."""

    family: str
    table: str
    chain: str
    number: int
    is_handle: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A rule of the copy, `number` from 1."""

    table: Table
    chain: str
    number: int

    @property
    def text(self) -> str:
        """The rule's text."""
        return self.table.chains[self.chain].rules[self.number - 1]

    def __str__(self) -> str:
        return f"{named(self.table)} {self.chain} rule {self.number}"


def named(table: Table) -> str:
    """Returns a table as a person writes it: ``filter``, ``inet filter``."""
    if table.backend == "nft":
        return f"{family_name(table.family)} {table.table}"
    return table.table


def parse(text: str) -> tuple[Words, str]:
    """Returns the rule that a text begins with, and the rest.  Raises WhatIfError."""
    found = _RULE.match(text.strip())
    if not found:
        raise WhatIfError(f"name a rule, then a packet: {FORMS}")
    family, table, chain, kind, number = found.groups()
    rest = text.strip()[found.end() :].strip()
    return Words(family or "", table, chain, int(number), kind == "handle"), rest


def resolve(words: Words, tables: Sequence[Table], version: int) -> Place:
    """Returns the rule that is meant, for a packet of this IP version.  Raises WhatIfError."""
    same = [one for one in tables if one.table == words.table and _fits(one, words, version)]
    if not same:
        known = ", ".join(sorted({named(one) for one in tables}))
        raise WhatIfError(f"there is no table {_shown(words)}: {clean(known, 200) or 'none'}")
    having = [one for one in same if words.chain in one.chains]
    if not having:
        known = ", ".join(sorted({name for one in same for name in one.chains}))
        raise WhatIfError(
            f"{_shown(words)} has no chain {clean(words.chain, 60)}: {clean(known, 200)}"
        )
    if len(having) > 1:
        forms = [f"{_long(one)} {words.chain} {words.number}" for one in having]
        raise WhatIfError(f"several rules are called so: {clean(' or '.join(forms), 200)}")
    return Place(having[0], words.chain, _number(words, having[0]))


def _fits(table: Table, words: Words, version: int) -> bool:
    legacy = table.family < NFT
    if words.family == "legacy":
        return legacy and table.family == version
    if words.family:
        return not legacy and family_name(table.family) == words.family
    if legacy:
        return table.family == version
    return family_name(table.family) in (_IP[version], "inet", "bridge", "netdev")


def _long(table: Table) -> str:
    family = "legacy" if table.family < NFT else family_name(table.family)
    return f"{family} {table.table}"


def _number(words: Words, table: Table) -> int:
    chain = table.chains[words.chain]
    where = f"{named(table)} {words.chain}"
    if words.is_handle:
        if words.number not in chain.handles:
            known = ", ".join(map(str, chain.handles[:20])) or "none"
            raise WhatIfError(f"{where} has no rule with handle {words.number}: {known}")
        return chain.handles.index(words.number) + 1
    if not 1 <= words.number <= len(chain.rules):
        count = len(chain.rules)
        raise WhatIfError(f"{where} has {count} rule{'' if count == 1 else 's'}")
    return words.number


def _shown(words: Words) -> str:
    return clean(f"{words.family} {words.table}".strip(), 60)
