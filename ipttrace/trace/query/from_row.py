# SPDX-License-Identifier: GPL-2.0-only
"""Query texts made from a row, for the keys that narrow the view.

The text always compiles and matches its row, whatever characters the row's names contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipttrace.trace.query.tree import Junction, Node, Not, parse, quote, to_text
from ipttrace.trace.row import Row
from ipttrace.trace.rules import NFT, family_name


def _tests(**values: object) -> str:
    return " and ".join(f"{name}={quote(value)}" for name, value in values.items())


# Distinguishes a legacy table from an nftables table of the same name.
LEGACY_TABLES: Final = "tables=legacy"


def _of_tables(family: int) -> dict[str, object]:
    """Tests for the tables of a family, numbered as in trace.rules.families.

    An inet table has packets of both IP families.
    """
    if family <= NFT:
        return {"family": family}
    name = family_name(family)
    return {"tables": family - NFT if name == str(family) else name}


def by_flow(row: Row) -> str:
    """Rows of the same flow, in both directions."""
    return f"flow={hex(row.flow) if row.flow else 'none'}"


def by_journey(row: Row) -> str:
    """Rows of the same packet."""
    return f"journey={row.journey:#x}"


def by_rule(row: Row) -> str:
    """Rows decided by the same rule; of a station, what happened for the same reason."""
    if row.station is not None:
        return by_drop(row)
    return _tests(
        table=row.table or None,
        chain=row.chain or None,
        rulenum=row.rulenum,
        **_of_tables(row.rules_family),
        netns=row.netns,
    )


def by_drop(row: Row) -> str:
    """Drops by the same rule, or for the same reason at the same place; stations alike."""
    if row.station is None:
        return conjunction("drop=yes", by_rule(row))
    if not row.drop:
        return _tests(station=row.station, netns=row.netns)
    return _tests(station=row.station, reason=row.reason, place=row.place or None, netns=row.netns)


def by_rule_on_path(table: str, chain: str, rulenum: int, family: int, netns: int) -> str:
    """Rows with this rule anywhere in their path.

    `family`: see trace.rules.families; `rulenum`: 0 if unknown.
    """
    path = f"{chain}:{rulenum or '?'}"
    return _tests(table=table or None, path=path, **_of_tables(family), netns=netns)


def by_chain_on_path(table: str, chain: str, family: int, netns: int) -> str:
    """Rows with any rule of this chain in their path."""
    return _tests(table=table or None, path=chain or None, **_of_tables(family), netns=netns)


def by_chain(row: Row) -> str:
    """Rows decided in the same chain of the same table; "" for a station."""
    if row.station is not None:
        return ""
    tables = _of_tables(row.rules_family) if row.tables else {}
    return _tests(table=row.table or None, chain=row.chain or None, **tables)


def by_verdict(row: Row) -> str:
    """Rows with the same verdict; of a drop outside the tables, all drops."""
    if row.station is not None:
        return _tests(drop="yes") if row.drop else _tests(station=row.station)
    return _tests(verdict=row.verdict)


def by_unresolved(protocol: str) -> str:
    """Accepted rows whose next hop does not answer this protocol: ARP or ND."""
    return _tests(unresolved=protocol)


def by_process(row: Row) -> str:
    """Rows of the process that has the socket; if that is unknown, of the one that was running.

    Its pid 0 stands for any idle CPU and is left out.
    """
    if row.owner_pid or row.owner_comm:
        return _tests(owner_comm=row.owner_comm, owner_pid=row.owner_pid)
    if row.pid:
        return _tests(comm=row.comm or None, pid=row.pid)
    return _tests(comm=row.comm or None)


def by_netns(row: Row) -> str:
    """Rows of the same network namespace."""
    return _tests(netns=row.netns)


def by_host_address(row: Row, destination: bool = False) -> str:
    """Rows with its source (or destination) address as any of their addresses."""
    return _tests(addr=(row.dst if destination else row.src) or None)


def by_host(row: Row, hosts: Sequence[str]) -> str:
    """Rows traced on the same host."""
    return _tests(host=hosts[row.host] if row.host < len(hosts) else row.host)


def negation(text: str) -> str:
    """Rows that `text` does not match.  Raises QueryError."""
    tree = parse(text)
    return "" if tree is None else to_text(Not(tree))


def conjunction(one: str, other: str) -> str:
    """Rows that both texts match.  Raises QueryError."""
    parts: list[Node] = []
    for tree in (parse(one), parse(other)):
        if isinstance(tree, Junction) and tree.word == "and":
            parts += [part for part in tree.parts if part not in parts]
        elif tree is not None:
            parts.append(tree)
    texts = list(dict.fromkeys(to_text(part, len(parts) > 1) for part in parts))
    return " and ".join(texts)
