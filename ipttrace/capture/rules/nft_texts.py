# SPDX-License-Identifier: GPL-2.0-only
"""What nftables' rules say, in the words of the tool that made them.

Native rules as `nft list ruleset` prints them; the tables of iptables-nft and
ip6tables-nft in iptables' own words, rule by rule, where iptables says all of the
rule.  A text is given to a rule only where the kernel's list and the tool's agree
on it.  Runs commands, in the calling thread's namespace.  Must not change anything.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipttrace.capture import iptables_save as ruleset_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.nft.dump import ChainInfo, Dump, Snapshot
from ipttrace.capture.rules import nft_listing
from ipttrace.capture.rules.nft_expressions import counted, sayable

NFT: Final = "nft"
IPTABLES: Final = "iptables-nft"

_SAVE: Final = {2: "iptables-nft-save", 10: "ip6tables-nft-save"}
# Hooks and priorities of iptables' chains: whoever has others is not iptables.
_FILTER: Final = {"INPUT": 1, "FORWARD": 2, "OUTPUT": 3}
_ALL: Final = {"PREROUTING": 0, **_FILTER, "POSTROUTING": 4}
_BUILT_IN: Final = {
    "raw": {"PREROUTING": (0, -300), "OUTPUT": (3, -300)},
    "mangle": {name: (hook, -150) for name, hook in _ALL.items()},
    "nat": {"PREROUTING": (0, -100), "INPUT": (1, 100), "OUTPUT": (3, -100),
            "POSTROUTING": (4, 100)},
    "filter": {name: (hook, 0) for name, hook in _FILTER.items()},
    "security": {name: (hook, 50) for name, hook in _FILTER.items()},
}  # fmt: skip
_POLICIES: Final = {0: "drop", 1: "accept"}
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OWN: Final = "ipttrace-"  # tables that flip, of whatever process
_MISSING: Final = "nft is missing (apt install nftables): nftables' rules have no texts"
_NO_ELEMENTS: Final = re.compile(rb"\{ *\}")

Counters = dict[tuple[int, str, str], list[tuple[int, int] | None]]
_Key = tuple[int, str]


class Changed(Exception):
    """The ruleset is not the snapshot's any more."""


@dataclass(frozen=True, slots=True)
class ChainText:
    """`policy`: None where it is no base chain; `rules`: None where it is not known;
    `counters`: packets and bytes, None where a rule has none."""

    policy: str | None
    rules: list[str | None]
    counters: list[tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class TableText:
    """`backend`: NFT or IPTABLES, whose table it is.

    Rules of IPTABLES that iptables has no words for are in those of nft.
    """

    backend: str
    chains: dict[str, ChainText]


def read(snapshot: Snapshot, note: Callable[[str], None] | None = None) -> dict[_Key, TableText]:
    """All tables of the snapshot but those of ipttrace, by family (NFPROTO_*) and name.

    `note` is told, in one line, why texts are missing that a command would have.
    Without it that is an error.  Raises Changed; CaptureError where a command fails or
    is missing; OSError.
    """
    by_table: dict[_Key, dict[str, ChainInfo]] = {
        key: {} for key in snapshot.tables if not key[1].startswith(_OWN)
    }
    if not by_table:
        return {}
    for (family, table, chain), info in snapshot.chains.items():
        if (family, table) in by_table:
            by_table[family, table][chain] = info
    with contextlib.closing(Dump()) as dump:
        try:
            found = _read(dump, snapshot, by_table, note)
        except (CaptureError, ruleset_save.Unreadable) as error:
            # Changes while they read make commands fail.
            if dump.genid() != snapshot.genid:
                raise Changed from error
            if isinstance(error, ruleset_save.Unreadable):
                raise CaptureError(str(error)) from error
            raise
        if dump.genid() != snapshot.genid:
            raise Changed
    return found


def _read(
    dump: Dump,
    snapshot: Snapshot,
    by_table: dict[_Key, dict[str, ChainInfo]],
    note: Callable[[str], None] | None,
) -> dict[_Key, TableText]:
    saved = {
        key: table
        for key, table in _saved(set(by_table)).items()
        if key in by_table and _fits(key[1], by_table[key], table)
    }
    counters: Counters = {}
    unsaid: set[tuple[int, str, int]] = set()
    for family, table, chain, handle, made in dump.made():
        counters.setdefault((family, table, chain), []).append(counted(made))
        if (family, table) in saved and not sayable(family, made):
            unsaid.add((family, table, handle))
    listed: nft_listing.Texts = {}
    if unsaid or len(saved) < len(by_table):
        path = _command("nft")
        if path is not None:
            listed = nft_listing.parse(_listing(path), snapshot)
        elif note is None:
            raise CaptureError(_MISSING)
        else:
            note(_MISSING)
    found = {}
    for key, chains in by_table.items():
        own = saved.get(key)
        texts = {}
        for name, info in chains.items():
            rules = listed.get((*key, name)) or [None] * len(info.handles)
            policy = None if info.hook is None else _POLICIES.get(info.policy or 0, "accept")
            if own is not None:
                policy = own[name].policy
                rules = [
                    native if (*key, handle) in unsaid else _harmless(words)
                    for handle, native, words in zip(
                        info.handles, rules, own[name].rules, strict=True
                    )
                ]
            counts = counters.get((*key, name), [])
            if len(counts) != len(rules):
                raise CaptureError("nftables lists other rules than before")
            texts[name] = ChainText(policy, rules, counts)
        found[key] = TableText(NFT if own is None else IPTABLES, texts)
    return found


def _fits(table: str, chains: dict[str, ChainInfo], saved: ruleset_save.Table) -> bool:
    """Whether it is iptables' table, and what iptables says are the rules that the kernel has."""
    built_in = _BUILT_IN.get(table, {})
    for name, info in chains.items():
        said = saved.get(name)
        if said is None or len(said.rules) != len(info.handles):
            return False
        place = None if info.hook is None else (info.hook, info.priority)
        if built_in.get(name) != place or (place is None) != (said.policy is None):
            return False
    return all(name in chains or not chain.rules for name, chain in saved.items())


def _saved(wanted: set[_Key]) -> dict[_Key, ruleset_save.Table]:
    """The tables that iptables-nft and ip6tables-nft take for theirs."""
    found: dict[_Key, ruleset_save.Table] = {}
    for family, name in _SAVE.items():
        if not any((family, table) in wanted for table in _BUILT_IN):
            continue
        path = _command(name)
        if path is None:
            continue
        try:
            said = ruleset_save.run([path, "-c"]).decode("utf-8", "surrogateescape")
            tables = ruleset_save.parse(said)
        except (CaptureError, ruleset_save.Unreadable):
            continue  # nft has words for them too
        found.update({(family, table): chains for table, chains in tables.items()})
    return found


def _listing(path: str) -> str:
    """What nft lists: no counters' values, and no elements of sets that have a name."""
    argv = [path, "-a", "-s", "-t", "list", "ruleset"]
    said = ruleset_save.run(argv)
    if _NO_ELEMENTS.search(said):
        # Some versions leave out those of sets that are part of a rule as well.
        said = ruleset_save.run([one for one in argv if one != "-t"])
    return said.decode("utf-8", "surrogateescape")


def _command(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PATH)


def _harmless(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
