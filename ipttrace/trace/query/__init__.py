# SPDX-License-Identifier: GPL-2.0-only
"""The query language of the view: text in, masks over the store's columns out.

``verdict=DROP and src in 10.0.0.0/8 and chain~DOCKER and cost>50us``.
docs/fields.md describes it.  Text is parsed once (query_tree), given a meaning
here, and turned into numpy masks by the kinds of the fields (query_kinds,
query_special).  Must not do I/O; must not import lark before a query is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.query.complete import Completion, complete, values_of
from ipttrace.trace.query.context import Context, RuleTexts, context_of
from ipttrace.trace.query.error import QueryError, shown, suggestion
from ipttrace.trace.query.fields import ALIASES, Field, fields
from ipttrace.trace.query.from_row import (
    LEGACY_TABLES,
    by_chain,
    by_chain_on_path,
    by_flow,
    by_host,
    by_host_address,
    by_journey,
    by_netns,
    by_process,
    by_rule,
    by_rule_on_path,
    by_verdict,
    conjunction,
    negation,
)
from ipttrace.trace.query.kinds import Hit, Kind, fitting
from ipttrace.trace.query.tree import Alone, Node, Not, Test, Value, parse, quote, replaced, written
from ipttrace.trace.query.words import meaning
from ipttrace.trace.store import Part

__all__ = (
    "LEGACY_TABLES",
    "Completion",
    "Context",
    "Query",
    "QueryError",
    "RuleTexts",
    "by_chain",
    "by_flow",
    "by_rule_on_path",
    "by_host",
    "by_host_address",
    "by_journey",
    "by_netns",
    "by_chain_on_path",
    "by_process",
    "by_rule",
    "by_verdict",
    "compile",
    "complete",
    "conjunction",
    "context_of",
    "negation",
    "quote",
    "values_of",
)

_REMEMBERED: Final = 8
_NEGATIVE: Final = {"!=": "=", "not in": "=", "!~": "~", "in": "="}


class Query:
    """A query that was understood.  Any thread may ask it; masks do not change it."""

    def __init__(self, text: str, tree: Node | None, hit: Hit | None) -> None:
        self.text = text
        """As the language has it: compiled again, it gives the same text and rows."""
        self.tree = tree
        self._hit = hit

    def __repr__(self) -> str:
        return f"Query({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def matches_all(self) -> bool:
        """Does it take all rows?"""
        return self._hit is None

    def mask(self, part: Part, context: Context) -> Array:
        """Which rows of the part it takes: bool, shape (len(part),), the caller's own."""
        if self._hit is None:
            return np.ones(len(part), bool)
        return self._hit(part, context)


@lru_cache(maxsize=_REMEMBERED)
def compile(text: str) -> Query:
    """The query that `text` says; empty text takes matches_all.  Raises QueryError.

    The last few are remembered: a filter is checked while it is typed, then used.
    """
    try:
        tree = parse(text)
        if tree is None:
            return Query("", None, None)
        tree = replaced(tree, _canonical)
        return Query(written(tree), tree, _hit_of(tree, text))
    except QueryError as error:
        error.text = text
        raise


def _canonical(leaf: Test | Alone) -> Node:
    """A test of a field under the field's own name."""
    if isinstance(leaf, Alone):
        return meaning(leaf)
    name = leaf.name.text.lower()
    name = ALIASES.get(name, name)
    known = fields()
    if leaf.name.quoted or name not in known:
        near = suggestion(leaf.name.text, (*known, *ALIASES))
        raise leaf.name.wrong(f"there is no field {shown(leaf.name.text)}{near}")
    named = Value(name, False, leaf.name.start, leaf.name.end)
    return Test(named, leaf.op, leaf.values, leaf.mask, leaf.at, leaf.depth)


def _hit_of(node: Node, source: str) -> Hit:
    if isinstance(node, Test):
        return _test(fields()[node.name.text], node, source)
    if isinstance(node, Not):
        inner = _hit_of(node.part, source)
        return lambda part, context: ~inner(part, context)
    assert not isinstance(node, Alone)
    hits = [_hit_of(part, source) for part in node.parts]
    return _all(hits) if node.word == "and" else _any(hits)


def _all(hits: Sequence[Hit]) -> Hit:
    def every(part: Part, context: Context) -> Array:
        found = hits[0](part, context)
        for hit in hits[1:]:
            if not found.any():
                break
            found &= hit(part, context)
        return found

    return every


def _any(hits: Sequence[Hit]) -> Hit:
    def one(part: Part, context: Context) -> Array:
        found = hits[0](part, context)
        for hit in hits[1:]:
            if found.all():
                break
            found |= hit(part, context)
        return found

    return one


def _test(field: Field, test: Test, source: str) -> Hit:
    """What is not known is never hit, but by ``none``."""
    for kind in field.kinds:
        fitting(kind, test)
    op = _NEGATIVE.get(test.op, test.op)
    negative = test.op in ("!=", "not in", "!~")
    if test.mask is not None and test.mask.is_none:
        raise test.mask.wrong("a mask has to be a number")
    none = next((value for value in test.values if value.is_none), None)
    if none is not None and op == "~":
        # An empty pattern finds itself in every text.
        none = None
    if none is not None and (op != "=" or test.mask is not None):
        raise none.wrong(f"nothing is {test.op} none: write {field.name}=none")
    wanted = [value for value in test.values if op == "~" or not value.is_none]
    hits = [(kind, kind.hit(op, wanted, test, source) if wanted else None) for kind in field.kinds]
    return _combined(hits, negative, none is not None)


def _combined(hits: Sequence[tuple[Kind, Hit | None]], negative: bool, none: bool) -> Hit:
    """`hits`: of each column that the field stands for; no Hit where only none is asked for."""

    def tested(part: Part, context: Context) -> Array:
        found: Array | None = None
        known: Array | None = None
        everywhere = False
        for kind, hit in hits:
            sure = kind.implied and not negative and not none
            there = None if sure else kind.known(part, context)
            if there is None:
                everywhere = True
            else:
                known = there if known is None else known | there
            if hit is not None:
                some = hit(part, context)
                if there is not None:
                    some &= there
                found = some if found is None else found | some
        if found is None:
            found = np.zeros(len(part), bool)
        has = np.ones(len(part), bool) if everywhere or known is None else known
        if negative:
            np.logical_not(found, out=found)
            found &= has
        elif none:
            found |= ~has
        return found

    return tested
