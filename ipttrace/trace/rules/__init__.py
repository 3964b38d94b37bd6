# SPDX-License-Identifier: GPL-2.0-only
"""The texts and counters of the rules, for the time at which each packet met them.

families   numbers and names of the families of tables
frames     RULES and COUNTERS frames, checked
texts      each rule text stored once
timeline   the versions of tables whose generations are counted together
counters   the newest counters of each table
rulesets   all of these for one host: what the rest of the program uses
"""

from __future__ import annotations

from ipttrace.trace.rules.families import (
    FAMILIES,
    NFT,
    NO_TABLES,
    family_name,
    table_name,
    tables_name,
)
from ipttrace.trace.rules.rulesets import Rulesets
from ipttrace.trace.rules.timeline import Table

__all__ = [
    "FAMILIES",
    "NFT",
    "NO_TABLES",
    "Rulesets",
    "Table",
    "family_name",
    "table_name",
    "tables_name",
]
