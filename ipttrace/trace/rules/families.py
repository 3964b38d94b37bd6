# SPDX-License-Identifier: GPL-2.0-only
"""Families of tables as numbers and names.

A legacy table has family 4 or 6, a table of nftables NFT + NFPROTO_*
(linux/netfilter.h).  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

from ipttrace.netfilter import NFT_FAMILIES

NFT: Final = 16
NO_TABLES: Final = 255
"""In place of NFPROTO_*: not a run through a table."""
# As frames give them → number.
FAMILIES: Final[dict[object, int]] = {
    4: 4,
    6: 6,
    **{name: NFT + number for number, name in NFT_FAMILIES.items()},
}
_NAMES: Final = {4: "IPv4", 6: "IPv6"} | {
    number: str(name) for name, number in FAMILIES.items() if number > NFT
}


def family_name(family: int) -> str:
    """Returns IPv4 or IPv6 for legacy tables, and nft's name for others."""
    return _NAMES.get(family, str(family))


def tables_name(tables: int) -> str:
    """Returns the field `tables` as text: "legacy", or nft's name of the family.

    `tables`: NFPROTO_* of the nftables table; 0: a legacy table; NO_TABLES: "".
    """
    if tables in NFT_FAMILIES:
        return family_name(NFT + tables)
    return "" if tables == NO_TABLES else str(tables or "legacy")


def table_name(tables: int, table: str) -> str:
    """Returns a row's table as shown beside others: "filter", "inet filter".

    `tables`: NFPROTO_* of the nftables table; 0: a legacy table.
    """
    return f"{family_name(NFT + tables)} {table}" if tables and tables != NO_TABLES else table
