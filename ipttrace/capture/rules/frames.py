# SPDX-License-Identifier: GPL-2.0-only
"""RULES and COUNTERS frames, as both watches of rules write them, and the limit of their size.

What each frame means is described in ipttrace/trace/rules/rulesets.py.  Must not do
I/O, except read the clock.
"""

from __future__ import annotations

import json
import time
from typing import Final, Literal

from ipttrace.capture.iptables_save import Table
from ipttrace.capture.legacy_texts import TextTable
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import ChainCounters, ChainRules, Counters, Note, Rules

MOST: Final = 8 << 20
"""Bytes of JSON that a frame may take; readers refuse 16 MB."""

Backend = Literal["legacy", "iptables-nft", "nft"]

Key = tuple[int, int | str, str]
"""A table: inode of its namespace; 4 or 6, or nft's name of the family; its name."""

RulesFrame = tuple[Kind, Rules]
CountersFrame = tuple[Kind, Counters]


def changed(key: Key, since: int, backend: Backend, upto: int) -> RulesFrame:
    """The table's rules changed in generation `since`; the new ones are not known yet."""
    return Kind.RULES, {**_about(key, since, backend, time.monotonic_ns()), "upto": upto}


def rules(
    key: Key,
    since: int,
    backend: Backend,
    mono: int,
    chains: dict[str, ChainRules],
    upto: int | None = None,
    unknown: dict[str, list[int]] | None = None,
    handles: dict[str, list[int]] | None = None,
) -> RulesFrame:
    """The table's rules from generation `since` on, read at `mono` ns.

    `unknown`: by chain, the numbers of the rules whose texts are not known; `handles`: of
    all rules in order, by chain.
    """
    frame: Rules = {**_about(key, since, backend, mono), "chains": chains}
    if upto is not None:
        frame["upto"] = upto
    if unknown:
        frame["unknown"] = unknown
    if handles:
        frame["handles"] = handles
    return Kind.RULES, frame


def gone(key: Key) -> RulesFrame:
    """The table does not exist any more."""
    netns, family, table = key
    return Kind.RULES, {"netns": netns, "family": family, "table": table, "gone": True}


def unknown(since: int, upto: int) -> RulesFrame:
    """Any legacy table may have changed in the generations from `since` to `upto`."""
    return Kind.RULES, {"since": since, "upto": upto}


def reported(upto: int) -> RulesFrame:
    """All changes of legacy tables up to the generation `upto` have been reported."""
    return Kind.RULES, {"upto": upto}


def reported_nft(upto: int) -> RulesFrame:
    """All changes of nftables' tables up to the generation `upto` have been reported."""
    return Kind.RULES, {"upto": upto, "of": "nft"}


def counters(key: Key, since: int, mono: int, chains: dict[str, ChainCounters]) -> CountersFrame:
    """What the rules of generation `since` had counted at `mono` ns."""
    netns, family, table = key
    return Kind.COUNTERS, {
        "netns": netns,
        "family": family,
        "table": table,
        "mono": mono,
        "since": since,
        "chains": chains,
    }


def warning(text: str) -> tuple[Kind, Note]:
    """A note for the person who reads the trace, one line."""
    return Kind.NOTE, {"level": "warn", "text": text}


def legacy_rules(table: TextTable) -> tuple[dict[str, ChainRules], dict[str, list[int]]]:
    """Returns the chains of a legacy table as a RULES frame holds them, and `unknown`."""
    chains: dict[str, ChainRules] = {
        name: {"policy": chain.policy, "rules": chain.rules} for name, chain in table.items()
    }
    return chains, {name: chain.unknown for name, chain in table.items() if chain.unknown}


def legacy_counters(table: Table) -> dict[str, ChainCounters]:
    """Returns the chains of a legacy table as a COUNTERS frame holds them."""
    return {
        name: {"policy": chain.policy_counters, "rules": chain.counters}
        for name, chain in table.items()
    }


def fits(
    chains: dict[str, ChainRules] | dict[str, ChainCounters],
    handles: dict[str, list[int]] | None = None,
) -> bool:
    """Returns whether the chains, with their rules' handles, are small enough for one frame."""
    return len(json.dumps([chains, handles], separators=(",", ":"))) <= MOST


def _about(key: Key, since: int, backend: Backend, mono: int) -> Rules:
    netns, family, table = key
    return {
        "netns": netns,
        "family": family,
        "table": table,
        "backend": backend,
        "since": since,
        "mono": mono,
    }
