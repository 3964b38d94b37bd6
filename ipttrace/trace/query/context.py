# SPDX-License-Identifier: GPL-2.0-only
"""What a query depends on besides the columns: names, time, rules, neighbours, fragments.

Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ipttrace.trace.fragments import FragmentIndex, index_of
from ipttrace.trace.neighbours import Neighbours
from ipttrace.trace.store import Names, Store


class RuleTexts(Protocol):
    """The rules of one host in every generation, as trace.rules.rulesets.Rulesets."""

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """The rule's text, clean; None if unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a query depends on besides the rows."""

    names: Names
    newest: int | None = None  # time of the newest row, ns since the epoch; None: of each part
    netns: Mapping[tuple[int, int], str] = field(default_factory=dict)  # by host and inode
    hosts: Sequence[str] = ()  # names by number
    rulesets: Mapping[int, RuleTexts] = field(default_factory=dict)  # by host
    utc: bool = False  # times without a zone are UTC, not local
    neighbours: Mapping[int, Neighbours] = field(default_factory=dict)  # by host
    fragments: FragmentIndex | None = None  # of the store; None: no row has a fault
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by field, for completion


def context_of(
    store: Store,
    *,
    netns: Mapping[int, str] | None = None,
    netns_by_host: Mapping[tuple[int, int], str] | None = None,
    hosts: Sequence[str] = (),
    utc: bool = False,
) -> Context:
    """The context of a store's rows as of now.

    Names of namespaces: `netns_by_host` by host and inode, or `netns` by inode if there
    is only one host.
    """
    newest = None
    for part in store.parts(store.end - 1 if len(store) else None):
        newest = int(part.columns["time"][-1])
    named = dict(netns_by_host or {})
    named.update(((0, inode), name) for inode, name in (netns or {}).items())
    return Context(
        store.names,
        newest,
        named,
        hosts,
        store.rulesets,
        utc,
        neighbours=store.neighbours,
        fragments=index_of(store),
    )
