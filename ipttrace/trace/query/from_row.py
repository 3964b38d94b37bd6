# SPDX-License-Identifier: GPL-2.0-only
"""Text of queries for the keys that narrow the view, made from a row.

Whatever names a row holds, what comes out compiles and takes that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipttrace.trace.query.tree import Many, Node, Not, parse, quote, written
from ipttrace.trace.row import Row
from ipttrace.trace.rules.families import NFT, family_name


def _tests(**values: object) -> str:
    return " and ".join(f"{name}={quote(value)}" for name, value in values.items())


# What tells a legacy table from one of nftables of the same name, where there may be both.
LEGACY_TABLES: Final = "tables=legacy"


def _of_tables(family: int) -> dict[str, object]:
    """Tests for the tables of a family, as `Rulesets` number them.

    What nftables calls inet has the packets of both families.
    """
    if family <= NFT:
        return {"family": family}
    name = family_name(family)
    return {"tables": family - NFT if name == str(family) else name}


def by_flow(row: Row) -> str:
    """Both directions of its flow."""
    return f"flow={hex(row.flow) if row.flow else 'none'}"


def by_journey(row: Row) -> str:
    """All the way of its packet."""
    return f"journey={row.journey:#x}"


def by_rule(row: Row) -> str:
    """Rows that the same rule decided."""
    return _tests(
        table=row.table or None,
        chain=row.chain or None,
        rulenum=row.rulenum,
        **_of_tables(row.rules_family),
        netns=row.netns,
    )


def by_rule_on_path(table: str, chain: str, rulenum: int, family: int, netns: int) -> str:
    """Rows that hit this rule on their way, whether it decided or not.

    `family`: as `Rulesets` number them; `rulenum`: 0 where it is not known.
    """
    path = f"{chain}:{rulenum or '?'}"
    return _tests(table=table or None, path=path, **_of_tables(family), netns=netns)


def by_chain_on_path(table: str, chain: str, family: int, netns: int) -> str:
    """Rows that hit any rule of this chain on their way."""
    return _tests(table=table or None, path=chain or None, **_of_tables(family), netns=netns)


def by_chain(row: Row) -> str:
    """Rows that were decided in the same chain of the same table."""
    tables = _of_tables(row.rules_family) if row.tables else {}
    return _tests(table=row.table or None, chain=row.chain or None, **tables)


def by_verdict(row: Row) -> str:
    """Rows that ended alike."""
    return _tests(verdict=row.verdict)


def by_process(row: Row) -> str:
    """Rows of the same process; pid 0 is no process, but each CPU that idles."""
    if row.pid:
        return _tests(comm=row.comm or None, pid=row.pid)
    return _tests(comm=row.comm or None)


def by_netns(row: Row) -> str:
    """Rows of the same network namespace."""
    return _tests(netns=row.netns)


def by_host_address(row: Row, destination: bool = False) -> str:
    """Rows that have its source address, or its destination, at any end."""
    return _tests(addr=(row.dst if destination else row.src) or None)


def by_host(row: Row, hosts: Sequence[str]) -> str:
    """Rows that were traced on the same host."""
    return _tests(host=hosts[row.host] if row.host < len(hosts) else row.host)


def negation(text: str) -> str:
    """Rows that `text` does not take.  Raises QueryError."""
    tree = parse(text)
    return "" if tree is None else written(Not(tree))


def conjunction(one: str, other: str) -> str:
    """Rows that both texts take, with parentheses where needed.  Raises QueryError."""
    parts: list[Node] = []
    for tree in (parse(one), parse(other)):
        if isinstance(tree, Many) and tree.word == "and":
            parts += [part for part in tree.parts if part not in parts]
        elif tree is not None:
            parts.append(tree)
    texts = list(dict.fromkeys(written(part, len(parts) > 1) for part in parts))
    return " and ".join(texts)
