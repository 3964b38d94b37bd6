# SPDX-License-Identifier: GPL-2.0-only
"""What nftables' rules say, in the words of the tool that made them.

Native rules as `nft list ruleset` prints them; the tables of iptables-nft and
ip6tables-nft in iptables' own words.  A text is given to a rule only where the
kernel's list of its chain and the tool's agree rule by rule.  Runs commands, in the
calling thread's namespace.  Must not change anything.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import Final

from ipttrace.capture import ruleset_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.nft_dump import ChainInfo, Dump, Snapshot

NFT: Final = "nft"
IPTABLES: Final = "iptables-nft"

_FAMILIES: Final = {"ip": 2, "ip6": 10, "inet": 1, "arp": 3, "bridge": 7, "netdev": 5}
_SAVE: Final = {2: "iptables-nft-save", 10: "ip6tables-nft-save"}
_IPTABLES_TABLES: Final = ("raw", "mangle", "nat", "filter", "security")
_POLICIES: Final = {0: "drop", 1: "accept"}
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OWN: Final = "ipttrace-"  # tables that flip, of whatever process

_TABLE: Final = re.compile(r'table (\w+) ("(?:[^"\\]|\\.)*"|\S+) \{ # handle \d+$')
_CHAIN: Final = re.compile(r'\tchain ("(?:[^"\\]|\\.)*"|\S+) \{ # handle \d+$')
_RULE: Final = re.compile(r"(.*) # handle (\d+)$", re.DOTALL)


class Changed(Exception):
    """The ruleset is not the snapshot's any more."""


@dataclass(frozen=True, slots=True)
class ChainText:
    """`policy`: None where it is no base chain; `rules`: None where it is not known;
    `counters`: packets and bytes, None where a rule has none or they were not asked for."""

    policy: str | None
    rules: list[str | None]
    counters: list[tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class TableText:
    """`backend`: NFT or IPTABLES, whose words they are."""

    backend: str
    chains: dict[str, ChainText]


def read(snapshot: Snapshot) -> dict[tuple[int, str], TableText]:
    """All tables of the snapshot but those of ipttrace, by family (NFPROTO_*) and name.

    Raises Changed; CaptureError where a command fails or is missing; OSError.
    """
    wanted = [key for key in snapshot.tables if not key[1].startswith(_OWN)]
    if not wanted:
        return {}
    by_table: dict[tuple[int, str], dict[str, ChainInfo]] = {key: {} for key in wanted}
    for (family, table, chain), info in snapshot.chains.items():
        if (family, table) in by_table:
            by_table[family, table][chain] = info
    saved = _saved(wanted)
    native = {key for key in wanted if not _fits(by_table[key], saved.get(key))}
    listed = _listed() if native else {}
    found = {}
    for key, chains in by_table.items():
        if key in native:
            texts = {
                name: _native(info, listed.get((*key, name), [])) for name, info in chains.items()
            }
            found[key] = TableText(NFT, texts)
        else:
            found[key] = TableText(IPTABLES, _own_words(saved[key]))
    dump = Dump()
    try:
        if dump.genid() != snapshot.genid:
            raise Changed
    finally:
        dump.close()
    return found


def _native(info: ChainInfo, rules: list[tuple[int, str]]) -> ChainText:
    texts: list[str | None] = [None] * len(info.handles)
    # A comment may look like rules: then what is listed is not what is there.
    if [handle for handle, _ in rules] == info.handles:
        texts = [text for _, text in rules]
    policy = None if info.hook is None else _POLICIES.get(info.policy or 0, "accept")
    return ChainText(policy, texts, [None] * len(texts))


def _own_words(table: ruleset_save.Table) -> dict[str, ChainText]:
    return {
        name: ChainText(chain.policy, list(chain.rules), list(chain.counters))
        for name, chain in table.items()
    }


def _fits(chains: dict[str, ChainInfo], saved: ruleset_save.Table | None) -> bool:
    """Whether what iptables says are the rules that the kernel has."""
    if saved is None:
        return False
    for name, info in chains.items():
        said = saved.get(name)
        if said is None or len(said.rules) != len(info.handles):
            return False
    return all(name in chains or not chain.rules for name, chain in saved.items())


def _saved(wanted: list[tuple[int, str]]) -> dict[tuple[int, str], ruleset_save.Table]:
    """The tables that iptables-nft and ip6tables-nft take for theirs."""
    found: dict[tuple[int, str], ruleset_save.Table] = {}
    for family, name in _SAVE.items():
        path = shutil.which(name) or shutil.which(name, path=_PATH)
        if path is None or not any(
            key[0] == family and key[1] in _IPTABLES_TABLES for key in wanted
        ):
            continue
        try:
            text = ruleset_save.run([path, "-c"]).decode("utf-8", "surrogateescape")
            tables = ruleset_save.parse(text)
        except (CaptureError, ruleset_save.Unreadable):
            continue  # nft has words for them too
        found.update({(family, table): chains for table, chains in tables.items()})
    return found


def _listed() -> dict[tuple[int, str, str], list[tuple[int, str]]]:
    """Handle and text of the rules of each chain, in order, as nft lists them."""
    path = shutil.which("nft") or shutil.which("nft", path=_PATH)
    if path is None:
        raise CaptureError("nft is missing (apt install nftables): its rules have no texts")
    said = ruleset_save.run([path, "-a", "-s", "list", "ruleset"])
    return parse(said.decode("utf-8", "surrogateescape"))


def parse(text: str) -> dict[tuple[int, str, str], list[tuple[int, str]]]:
    """What `nft -a -s list ruleset` prints; see `_listed`.  What is no rule is passed over.

    A rule stands behind two tabs, its further lines behind three; the last one ends
    with its handle.
    """
    found: dict[tuple[int, str, str], list[tuple[int, str]]] = {}
    table: tuple[int, str] | None = None
    rules: list[tuple[int, str]] | None = None
    pending: list[str] = []
    for line in text.split("\n"):
        if line.startswith("\t\t") and rules is not None:
            more = line.startswith("\t\t\t")
            pending = [*pending, line.strip()] if more and pending else [line.strip()]
            if (rule := _RULE.fullmatch(" ".join(pending))) is not None:
                rules.append((int(rule[2]), rule[1]))
                pending = []
            continue
        pending = []
        if (start := _TABLE.fullmatch(line)) is not None:
            table = _FAMILIES.get(start[1], 0), _name(start[2])
            rules = None
        elif (chain := _CHAIN.fullmatch(line)) is not None and table is not None:
            # Twice the same name: neither is known.
            key = (*table, _name(chain[1]))
            rules = [] if key in found else found.setdefault(key, [])
        elif not line.startswith("\t\t"):
            rules = None
    return found


def _name(word: str) -> str:
    return word[1:-1] if word.startswith('"') else word
