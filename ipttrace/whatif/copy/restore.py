# SPDX-License-Identifier: GPL-2.0-only
"""Rules into the copy, by the programs that restore them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipttrace.text import clean
from ipttrace.whatif.copy import commands, portions
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot.model import KINDS, Ruleset
from ipttrace.whatif.snapshot.nft import without_owner

_PROGRAMS: Final = {
    "ipset": ["ipset", "restore", "-exist"],
    "iptables-legacy": ["iptables-legacy-restore"],
    "ip6tables-legacy": ["ip6tables-legacy-restore"],
    "iptables-nft": ["iptables-nft-restore"],
    "ip6tables-nft": ["ip6tables-nft-restore"],
    "nft": ["nft", "-f", "-"],
}
# What a kernel or a host without legacy tables says.
_NO_LEGACY: Final = ("Table does not exist", "Protocol not supported", "not installed")


def load(rulesets: Sequence[Ruleset]) -> list[str]:
    """Loads all rules; returns notes, a line each.  Raises WhatIfError."""
    notes: list[str] = []
    # Sets before the rules that use them; files that flush everything before all others.
    ordered = sorted(rulesets, key=lambda one: _rank(one))
    for one in ordered:
        try:
            load_one(one)
        except WhatIfError as error:
            if not one.kind.endswith("-legacy") or not any(
                text in str(error) for text in _NO_LEGACY
            ):
                raise
            load_one(Ruleset(one.kind.replace("legacy", "nft"), one.text, one.source))
            notes.append(f"{one.source}: copied into nftables: this host has no legacy tables")
    return notes


def _rank(one: Ruleset) -> int:
    if one.kind == "nft" and "flush ruleset" in one.text:
        return -1
    # iptables-nft and nft stay in their order, which is that of their base chains.
    return min(KINDS.index(one.kind), KINDS.index("iptables-nft"))


def load_one(one: Ruleset) -> None:
    """Loads rules.  Raises WhatIfError, one line with their source."""
    text = without_owner(one.text) if one.kind == "nft" else one.text
    try:
        _restore(one, _PROGRAMS[one.kind], text if text.endswith("\n") else f"{text}\n")
    except _TooLong:
        for size in portions.SIZES:
            try:
                _in_portions(one, text, size)
            except _TooLong:
                if size == portions.SIZES[-1]:
                    raise
            else:
                return


def _in_portions(one: Ruleset, text: str, size: int) -> None:
    argv = _PROGRAMS[one.kind]
    if one.kind == "nft":
        if size != portions.SIZES[0]:
            _restore(one, argv, portions.empty(text))
        for portion in portions.nft(text, size):
            _restore(one, argv, portion)
        return
    more: list[str] = []  # the first one empties the tables
    for portion in portions.iptables(text, size):
        _restore(one, [*argv, *more], portion)
        more = ["--noflush"]


class _TooLong(WhatIfError):
    """The rules do not fit into one transaction."""


def _restore(one: Ruleset, argv: list[str], text: str) -> None:
    try:
        done = commands.run(argv, text)
    except WhatIfError as error:
        raise WhatIfError(f"{one.source}: {error}") from None
    if done.status < 0:
        raise WhatIfError(f"{one.source}: {argv[0]} was killed by signal {-done.status}")
    if done.status:
        kind = _TooLong if "Message too long" in done.errors else WhatIfError
        raise kind(f"{one.source}: {argv[0]} refuses the rules: {clean(done.reason, 240)}")
