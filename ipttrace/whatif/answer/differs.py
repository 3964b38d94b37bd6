# SPDX-License-Identifier: GPL-2.0-only
"""Rules on a packet's way that the copy cannot answer for: they ask for what it does not have.

A rule is on the way if the packet was compared with it, whether it matched or not.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ipttrace.rule_words import target
from ipttrace.trace.row import Row
from ipttrace.trace.rules import Rulesets, Table

_IPTABLES: Final = {
    "owner": "the copy has no processes",
    "socket": "the copy has no sockets",
    "cgroup": "the copy has no processes",
    "limit": "its rate starts anew",
    "hashlimit": "its rates start anew",
    "quota": "its quota starts anew",
    "quota2": "its quota starts anew",
    "recent": "its list of addresses is empty",
    "statistic": "it matches at random, or every nth packet",
    "time": "it depends on the time of day",
    "connlimit": "the copy has no other connections",
    "connbytes": "the connection has no history",
    "rateest": "there is no traffic to estimate",
    "nfacct": "its quota starts anew",
    "helper": "no helper has seen the connection",
    "cpu": "it depends on the processor",
    "osf": "fingerprints are not copied",
    "policy": "IPsec is not copied",
}
_TARGETS: Final = {
    "NFQUEUE": "the program that decides is not there",
    "QUEUE": "the program that decides is not there",
    "TPROXY": "the copy has no sockets",
    "SET": "the set changes only in the copy",
    "SYNPROXY": "the handshake does not go on",
}
_NFT: Final = (
    (r"\blimit rate\b|\blimit name\b", "its rate starts anew"),
    (r"\bquota\b", "its quota starts anew"),
    (r"\bskuid\b|\bskgid\b|\bmeta cgroup\b", "the copy has no processes"),
    (r"\bsocket\b|\btproxy\b", "the copy has no sockets"),
    (r"\bnumgen\b|\bmeta random\b", "it matches at random, or every nth packet"),
    (r"\bmeta (time|hour|day)\b|\bhour\b|\bday \"", "it depends on the time of day"),
    (r"\bct count\b", "the copy has no other connections"),
    (r"\bct (\w+ )?(bytes|packets|avgpkt)\b", "the connection has no history"),
    (r"\bct helper \"", "no helper has seen the connection"),
    (r"\b(add|update|delete) @", "the set has only what the copy has put there"),
    (r"\bqueue\b", "the program that decides is not there"),
    (r"\bsynproxy\b", "the handshake does not go on"),
    (r"\bmeta cpu\b", "it depends on the processor"),
    (r"\bosf\b", "fingerprints are not copied"),
    (r"\bmeta (sec|ipsec)\w*\b|\bipsec\b", "IPsec is not copied"),
    (r"\bflow (add|offload) @", "nothing is offloaded"),
)
_MATCH: Final = re.compile(r"(?:^|\s)-m (\S+)")
_TARGET: Final = re.compile(r"(?:^|\s)-j (\S+)")
_DYNAMIC: Final = re.compile(r"(?:^|\s)--(random|every|packet|update|rcheck|set)\b")
_PROTO: Final = re.compile(r"(?:^|\s)(! )?-p (\S+)")
_GOTO: Final = re.compile(r"\bgoto \S")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Differs:
    """A rule, and why the copy's answer may differ from the host's."""

    table: str
    chain: str
    rulenum: int
    what: str  # the match, target or expression
    why: str
    rule: str


def find(rows: Sequence[Row], rulesets: Rulesets) -> list[Differs]:
    """Returns the rules on the way of a packet with these rows, in order."""
    found: list[Differs] = []
    seen: set[tuple[str, int, str, int]] = set()
    for row in rows:
        table = table_of(row, rulesets)
        if table is None:
            continue
        for chain, number in compared(row, table):
            key = (row.table, table.family, chain, number)
            if key in seen:
                continue
            seen.add(key)
            text = table.chains[chain].rules[number - 1]
            if reason := why(text, table.backend, row):
                found.append(Differs(row.table, chain, number, *reason, text))
    return found


def table_of(row: Row, rulesets: Rulesets) -> Table | None:
    """Returns the rules of the table that a row is of."""
    same = [one for one in rulesets.tables(row.netns) if one.table == row.table]
    legacy = row.tables == 0 or row.tables is None
    fitting = [one for one in same if (one.backend == "legacy") == legacy]
    by_family = [one for one in fitting if one.family in (row.family, row.tables)]
    chosen = [one for one in by_family or fitting if row.chain in one.chains or not row.chain]
    return chosen[0] if chosen else None


def compared(row: Row, table: Table) -> Iterator[tuple[str, int]]:
    """Yields chain and number of every rule that the packet of a row was compared with."""
    at: dict[str, int] = {}
    for step in row.path:
        chain = table.chains.get(step.chain)
        if chain is None:
            continue
        first = at.get(step.chain, 0) + 1
        last = step.rulenum if step.match == "rule" else len(chain.rules)
        last = min(last, len(chain.rules))
        if step.match == "rule" and step.rulenum < first:
            first = 1
        for number in range(first, last + 1):
            yield step.chain, number
        if step.match == "rule":
            left = last and _is_goto(chain.rules[last - 1], table.backend)
            at[step.chain] = len(chain.rules) if left else step.rulenum
        else:
            at.pop(step.chain, None)


def _is_goto(text: str, backend: str) -> bool:
    if backend == "nft":
        return _GOTO.search(_QUOTED.sub('""', text)) is not None
    found = target(text)
    return found is not None and found.option == "-g"


def why(text: str, backend: str, row: Row) -> tuple[str, str] | None:
    """Returns what in a rule's text differs, and why; None if nothing does."""
    plain = _QUOTED.sub('""', text)
    if backend != "nft":
        asked = _PROTO.search(plain)
        if asked and row.proto and not asked[1] and _other(asked[2], row.proto):
            return None
        for name in _MATCH.findall(plain):
            if name in _IPTABLES and (name != "statistic" or _DYNAMIC.search(plain)):
                return name, _IPTABLES[name]
        for name in _TARGET.findall(plain):
            if name in _TARGETS:
                return name, _TARGETS[name]
        return None
    for pattern, reason in _NFT:
        if found := re.search(pattern, plain):
            return found[0].strip(), reason
    return None


def _other(asked: str, proto: str) -> bool:
    """Whether a rule for the protocol `asked` is not for a packet of `proto`."""
    names = {"ipv6-icmp": "icmpv6", "icmp6": "icmpv6"}
    known = {"tcp", "udp", "icmp", "icmpv6", "sctp", "gre", "esp", "ah"}
    wanted = names.get(asked.lower(), asked.lower())
    return wanted in known and wanted != proto.lower()
