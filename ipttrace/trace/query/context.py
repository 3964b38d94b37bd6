# SPDX-License-Identifier: GPL-2.0-only
"""What a query has to know beside the columns: names, the newest row, rules' texts.

Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ipttrace.trace.store import Store
from ipttrace.trace.store.names import Names


class RuleTexts(Protocol):
    """The rules of one host, in every generation: what rulesets.Rulesets is."""

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """The rule's text, clean; None where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Of the rows that a query is asked about.

    `newest`: time of the newest row, ns since the epoch; None: of each part
    for itself.  `netns`: names of namespaces by host and inode; `hosts`: names by
    number; `rulesets`: by host; `utc`: times without a zone are UTC, not local.
    `values`: for completion alone, those that rows have, by field.
    """

    names: Names
    newest: int | None = None
    netns: Mapping[tuple[int, int], str] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    rulesets: Mapping[int, RuleTexts] = field(default_factory=dict)
    utc: bool = False
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)


def context_of(
    store: Store,
    *,
    netns: Mapping[int, str] | None = None,
    places: Mapping[tuple[int, int], str] | None = None,
    hosts: Sequence[str] = (),
    utc: bool = False,
) -> Context:
    """The context of a store as it is now: names, newest row and rules' texts are its own.

    Names of namespaces are in `places`, by host and inode, or, where there is
    one host, in `netns`.
    """
    newest = None
    for part in store.parts(store.end - 1 if len(store) else None):
        newest = int(part.columns["time"][-1])
    named = dict(places or {})
    named.update(((0, inode), name) for inode, name in (netns or {}).items())
    return Context(store.names, newest, named, hosts, store.rulesets, utc)
