# SPDX-License-Identifier: GPL-2.0-only
"""Filters in words, as the bar shows them: "flow 10.1.0.2:40004 ⇄ 10.2.0.2:443".

Words only: the queries are made by trace.query.from_row.  Must not import widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ipttrace.trace.row import Row
from ipttrace.trace.rules import family_name, table_name
from ipttrace.trace.story import endpoint
from ipttrace.tui.cells import cell_len

SEPARATOR: Final = " › "
_LEFT_OUT: Final = "…"


def flow(src: str, sport: int | None, dst: str, dport: int | None) -> str:
    """A flow by the two ends of one of its packets."""
    return f"flow {endpoint(src, sport)} ⇄ {endpoint(dst, dport)}"


def rule(family: int, table: str, chain: str, rulenum: int | None, kind: str = "rule") -> str:
    """A rule, a policy or a chain's end.  `family`: see trace.rules.families."""
    name = {4: "", 6: "ip6 "}.get(family, f"{family_name(family)} ") + table
    place = f"{name} {chain}"
    return f"policy {place}" if kind == "policy" else f"{kind} {place}:{rulenum or '?'}"


def drop(row: Row) -> str:
    """Drops by a rule, or outside the tables; another station."""
    if row.station is None:
        return f"drops by {_rule(row, '')}"
    if not row.drop:
        return row.station
    words = [row.reason or "dropped"]
    return " ".join([*words, *([f"at {row.place}"] if row.place else [])])


def _rule(row: Row, netns: str) -> str:
    if row.station is not None:
        return drop(row)
    if row.chain is None:
        return f"rule {table_name(row.tables, row.table)} ?"
    kind = "policy" if row.match == "policy" else "rule"
    return rule(row.rules_family, row.table, row.chain, row.rulenum, kind)


def _chain(row: Row, netns: str) -> str:
    return f"chain {table_name(row.tables, row.table)} {row.chain or '?'}"


def _process(row: Row, netns: str) -> str:
    if row.owner_pid or row.owner_comm:
        return f"socket of {row.owner_comm or '?'}" + (f" {row.owner_pid}" if row.owner_pid else "")
    return f"process {row.comm or '?'}" + (f" {row.pid}" if row.pid else "")


def _flow(row: Row, netns: str) -> str:
    return flow(row.src, row.sport, row.dst, row.dport)


def _station(row: Row) -> str:
    return "drops" if row.drop else row.station or ""


_BY_KEY: Final[Mapping[str, Callable[[Row, str], str]]] = {
    "flow": _flow,
    "rule": _rule,
    "chain": _chain,
    "verdict": lambda row, netns: row.verdict or _station(row) or "no verdict",
    "process": _process,
    "namespace": lambda row, netns: f"netns {netns}",
    "host": lambda row, netns: f"host {row.src}",
    "hide flow": lambda row, netns: f"without {_flow(row, netns)}",
}


def of_row(name: str, row: Row, netns: str) -> str:
    """The words of the filter that a key makes from a row.

    `name`: the filter's, as in `TraceView`; `netns`: the name of the row's namespace.
    """
    return _BY_KEY[name](row, netns)


def trail(words: Sequence[str], room: int) -> str:
    """The filters in force in at most `room` cells; the last one always whole."""
    for first in range(len(words)):
        shown = [*([_LEFT_OUT] if first else []), *words[first:]]
        text = SEPARATOR.join(shown)
        if cell_len(text) <= room:
            return text
    return words[-1] if words else ""
