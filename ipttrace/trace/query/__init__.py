# SPDX-License-Identifier: GPL-2.0-only
"""The query language: text in, masks over the columns of rows out.

``verdict=DROP and src in 10.0.0.0/8 and chain~DOCKER and cost>50us``; docs/fields.md
describes it.

- __init__.py: a query from its text: fields looked up, tests combined
- tree.py: the grammar; text to a syntax tree and back
- words.py: words without an operator (drop, tcp, 10.1.2.3) as tests
- fields.py: the fields and their kinds
- kinds.py: tests of single columns as masks
- special.py: tests of fields computed from several columns
- names.py: tests of names, evaluated once for each name
- unresolved.py: accepted packets whose next hop does not answer ARP or ND
- fragment.py: what is wrong with a fragment
- patterns.py: regular expressions
- values.py: numbers with units, times, addresses
- context.py: what a query depends on besides the rows
- error.py: QueryError, and the line with a ^ under the position
- complete.py: completions at the cursor
- from_row.py: query texts made from a row, for the keys that narrow the view
- from_socket.py: query texts for the packets of a connection or of a port
- pcap.py: a row's flow as a pcap-filter expression
- until.py: the first row that a query matches

Must not do I/O, and must not import lark or re2 before the first query.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.query.complete import Completion, complete, values_of
from ipttrace.trace.query.context import Context, RuleTexts, context_of
from ipttrace.trace.query.error import QueryError, for_message, suggestion
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
    by_unresolved,
    by_verdict,
    conjunction,
    negation,
)
from ipttrace.trace.query.kinds import Kind, Matcher, check_operator
from ipttrace.trace.query.tree import (
    BareWord,
    Node,
    Not,
    Test,
    Value,
    map_leaves,
    parse,
    quote,
    to_text,
)
from ipttrace.trace.query.unresolved import PROTOCOLS as UNRESOLVED
from ipttrace.trace.query.unresolved import next_hop
from ipttrace.trace.query.words import expand_word
from ipttrace.trace.store import Part

__all__ = (
    "LEGACY_TABLES",
    "UNRESOLVED",
    "Completion",
    "Context",
    "Query",
    "QueryError",
    "RuleTexts",
    "by_chain",
    "by_chain_on_path",
    "by_flow",
    "by_host",
    "by_host_address",
    "by_journey",
    "by_netns",
    "by_process",
    "by_rule",
    "by_rule_on_path",
    "by_unresolved",
    "by_verdict",
    "compile",
    "complete",
    "conjunction",
    "context_of",
    "negation",
    "next_hop",
    "quote",
    "values_of",
)

_CACHED: Final = 8
_NEGATIVE: Final = {"!=": "=", "not in": "=", "!~": "~", "in": "="}


class Query:
    """A compiled query.  Several threads may use one at the same time."""

    def __init__(self, text: str, matcher: Matcher | None, *, changes: bool = False) -> None:
        self.text = text
        """Canonical text: compiled again, it gives the same text and rows."""
        self.changes = changes
        """Whether a row may match at one time and not at another: see Kind.changes."""
        self._matcher = matcher

    def __repr__(self) -> str:
        return f"Query({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Query) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def matches_all(self) -> bool:
        """Whether it matches all rows."""
        return self._matcher is None

    def mask(self, part: Part, context: Context) -> Array:
        """The rows of the part that match: bool of shape (len(part),), owned by the caller."""
        if self._matcher is None:
            return np.ones(len(part), bool)
        return self._matcher(part, context)


@lru_cache(maxsize=_CACHED)
def compile(text: str) -> Query:
    """The query of `text`; empty text matches all rows.  Raises QueryError.

    The last few are cached: a filter is checked while it is typed, then used.
    """
    try:
        tree = parse(text)
        if tree is None:
            return Query("", None)
        tree = map_leaves(tree, _canonical)
        return Query(to_text(tree), _matcher_of(tree, text), changes=_has_changes(tree))
    except QueryError as error:
        error.text = text
        raise


def _canonical(leaf: Test | BareWord) -> Node:
    """The leaf as a test, with the field's own name."""
    if isinstance(leaf, BareWord):
        return expand_word(leaf)
    name = leaf.name.text.lower()
    name = ALIASES.get(name, name)
    if leaf.name.quoted or name not in fields():
        near = suggestion(leaf.name.text, (*fields(), *ALIASES))
        raise leaf.name.error(f"there is no field {for_message(leaf.name.text)}{near}")
    named = Value(name, False, leaf.name.start, leaf.name.end)
    return Test(named, leaf.op, leaf.values, leaf.mask, leaf.at, leaf.depth)


def _matcher_of(node: Node, source: str) -> Matcher:
    if isinstance(node, Test):
        return _test(fields()[node.name.text], node, source)
    if isinstance(node, Not):
        inner = _matcher_of(node.part, source)
        return lambda part, context: ~inner(part, context)
    assert not isinstance(node, BareWord)
    matchers = [_matcher_of(part, source) for part in node.parts]
    return _all(matchers) if node.word == "and" else _any(matchers)


def _has_changes(node: Node) -> bool:
    if isinstance(node, Test):
        return any(kind.changes for kind in fields()[node.name.text].kinds)
    assert not isinstance(node, BareWord)
    parts = (node.part,) if isinstance(node, Not) else node.parts
    return any(map(_has_changes, parts))


def _all(matchers: Sequence[Matcher]) -> Matcher:
    def match_all(part: Part, context: Context) -> Array:
        found = matchers[0](part, context)
        for matcher in matchers[1:]:
            if not found.any():
                break
            found &= matcher(part, context)
        return found

    return match_all


def _any(matchers: Sequence[Matcher]) -> Matcher:
    def match_any(part: Part, context: Context) -> Array:
        found = matchers[0](part, context)
        for matcher in matchers[1:]:
            if found.all():
                break
            found |= matcher(part, context)
        return found

    return match_any


def _test(field: Field, test: Test, source: str) -> Matcher:
    """The rows that a test matches: unknown values match ``none`` only."""
    for kind in field.kinds:
        check_operator(kind, test)
    op = _NEGATIVE.get(test.op, test.op)
    negative = test.op in ("!=", "not in", "!~")
    if test.mask is not None and test.mask.is_none:
        raise test.mask.error("a mask must be a number")
    none = next((value for value in test.values if value.is_none), None)
    if none is not None and op == "~":
        # An empty pattern occurs in every text.
        none = None
    if none is not None and (op != "=" or test.mask is not None):
        raise none.error(f"{test.op} does not apply to none; use {field.name}=none")
    wanted = [value for value in test.values if op == "~" or not value.is_none]
    matchers = [
        (kind, kind.matcher(op, wanted, test, source) if wanted else None) for kind in field.kinds
    ]
    return _combined(matchers, negative, none is not None)


def _combined(
    matchers: Sequence[tuple[Kind, Matcher | None]], negative: bool, none: bool
) -> Matcher:
    """The test of a field with one or several columns.

    `matchers`: one for each column; None if the test is for ``none`` alone.
    """

    def tested(part: Part, context: Context) -> Array:
        found: Array | None = None
        known: Array | None = None
        all_known = False
        for kind, matcher in matchers:
            unneeded = kind.skips_unknown and not negative and not none
            has_value = None if unneeded else kind.has_value(part, context)
            if has_value is None:
                all_known = True
            else:
                known = has_value if known is None else known | has_value
            if matcher is not None:
                matched = matcher(part, context)
                if has_value is not None:
                    matched &= has_value
                found = matched if found is None else found | matched
        if found is None:
            found = np.zeros(len(part), bool)
        if all_known or known is None:
            known = np.ones(len(part), bool)
        if negative:
            np.logical_not(found, out=found)
            found &= known
        elif none:
            found |= ~known
        return found

    return tested
