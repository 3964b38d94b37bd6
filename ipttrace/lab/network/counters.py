# SPDX-License-Identifier: GPL-2.0-only
"""Reads rule counters from the output of iptables-save.

Must not run anything.
"""

from __future__ import annotations

import re
from typing import Final

Counters = dict[tuple[str, str, int], tuple[int, int]]
"""(table, chain, rulenum) → (packets, bytes); rulenum 0 is a built-in chain's policy."""

_CHAIN: Final = re.compile(r":(\S+) (\S+) \[(\d+):(\d+)\]")
_RULE: Final = re.compile(r"\[(\d+):(\d+)\] -A (\S+)")


def read_counters(text: str) -> Counters:
    """Returns the counters in the output of `iptables-save -c`."""
    found: Counters = {}
    table = ""
    numbers: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            numbers = {}
        elif chain := _CHAIN.match(line):
            name, policy, packets, size = chain.groups()
            numbers[name] = 0
            if policy != "-":
                found[table, name, 0] = int(packets), int(size)
        elif rule := _RULE.match(line):
            packets, size, name = rule.groups()
            numbers[name] += 1
            found[table, name, numbers[name]] = int(packets), int(size)
    return found
