# SPDX-License-Identifier: GPL-2.0-only
"""Columns to rows, only for what is shown or written.  Must not do I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import HOOKS, IP_VERSIONS, UNKNOWN_HOOK, VERDICTS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import NFT, Rulesets
from ipttrace.trace.store.names import Names
from ipttrace.trace.store.schema import ENGINES, STEPS, Columns

# enum ip_conntrack_info (linux/netfilter/nf_conntrack_common.h).
_CT_STATES: Final = {
    0: "ESTABLISHED",
    1: "RELATED",
    2: "NEW",
    3: "ESTABLISHED",  # in reply direction, also below
    4: "RELATED",
}
_CT_UNTRACKED: Final = 7

_ETHERNET: Final = 14

_PLAIN: Final = (
    "time",
    "engine",
    "skb",
    "netns",
    "cpu",
    "pid",
    "comm",
    "in",
    "out",
    "family",
    "hook",
    "table",
    "chain",
    "rulenum",
    "match",
    "verdict",
    "cost",
    "len",
    "proto",
    "src",
    "sport",
    "dst",
    "dport",
    "tcp_flags",
    "icmp_type",
    "icmp_code",
    "frag_id",
    "frag_off",
    "known",
    "version",
    "mark",
    "mac",
    "mac_len",
    "flags",
    "ct_info",
    "ct_proto",
    "ct_orig_src",
    "ct_orig_sport",
    "ct_orig_dst",
    "ct_orig_dport",
    "call",
    "parent",
    "journey",
    "flow",
    "partial",
    "host",
    "ruleset",
    "tables",
    "trace_id",
    "exit_flags",
)


def _name(table: Sequence[str], number: int) -> str:
    return table[number] if number < len(table) else str(number)


@lru_cache(maxsize=1 << 14)
def address(raw: bytes, version: int) -> str:
    """Returns the text of an address of 16 bytes; "" if `version` is neither 4 nor 6."""
    if version == 4:
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"
    return str(IPv6Address(raw)) if version == 6 else ""


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _frag(known: int, number: int, offset: int) -> str | None:
    if not known & packet.FRAGMENT:
        return None
    return f"{number}:{offset}{'+' if known & packet.MORE else ''}"


def _ct_state(tracked: bool, info: int) -> str | None:
    if not tracked:
        return "UNTRACKED" if info == _CT_UNTRACKED else None
    return _CT_STATES.get(info)


def unfold(
    seqs: Array,
    first: int,
    columns: Columns,
    ends: Array,
    steps: Columns,
    names: Names,
    rulesets: Mapping[int, Rulesets],
) -> list[Row]:
    """Returns rows `seqs` (int64, shape (n,)) of the chunk whose first row is `first`.

    `rulesets`: by host, for the text of the deciding rule.
    """
    at = seqs - first
    values = zip(*(_listed(columns[name][at]) for name in _PLAIN), strict=True)
    stop = ends[at].astype(np.int64)
    start = np.where(at > 0, ends[np.maximum(at - 1, 0)], 0)
    known: dict[tuple[int, int, int], Step] = {}

    def step(of: tuple[int, int, int]) -> Step:
        if of not in known:
            known[of] = Step(names.text(of[0]), of[1], _name(record.MATCHES, of[2]))
        return known[of]

    rows = []
    for seq, a, b, value in zip(seqs.tolist(), start.tolist(), stop.tolist(), values, strict=True):
        triples = zip(*(steps[name][a:b].tolist() for name in STEPS), strict=True)
        path = tuple(map(step, triples))
        rows.append(_row(seq, dict(zip(_PLAIN, value, strict=True)), path, names, rulesets))
    return rows


def _listed(column: Array) -> list[Any]:
    if column.ndim > 1:
        return [value.tobytes() for value in column]
    listed: list[Any] = column.tolist()
    return listed


def _row(
    seq: int,
    of: dict[str, Any],
    path: tuple[Step, ...],
    names: Names,
    rulesets: Mapping[int, Rulesets],
) -> Row:
    known = of["known"]
    tracked = bool(of["flags"] & record.F_CONNTRACK)
    family = IP_VERSIONS.get(of["family"], of["family"])
    ports = bool(known & packet.PORTS)
    ct_ports = tracked and ip.DECODED[of["ct_proto"]] == ip.HAS_PORTS
    ethernet = of["mac_len"] == _ETHERNET
    decided = of["chain"] != 0
    kernel = ENGINES[of["engine"]] != "netlink"
    unknown_verdict = bool(of["exit_flags"] & record.EXIT_F_NO_VERDICT)
    return Row(
        index=seq,
        time=of["time"],
        engine=ENGINES[of["engine"]],
        skb=of["skb"] or None,
        netns=of["netns"],
        cpu=of["cpu"] if kernel else None,
        pid=of["pid"] if kernel else None,
        comm=names.text(of["comm"]) if kernel else None,
        in_=names.text(of["in"]) or None,
        out=names.text(of["out"]) or None,
        family=family,
        hook="" if of["hook"] == UNKNOWN_HOOK else _name(HOOKS, of["hook"]),
        table=names.text(of["table"]),
        chain=names.text(of["chain"]) if decided else None,
        rulenum=(of["rulenum"] or None) if decided else None,
        match=_name(record.MATCHES, of["match"]) if decided else None,
        path=path,
        rule=_rule(of, family, path[-1], names, rulesets) if decided and path else None,
        verdict=None if unknown_verdict else _name(VERDICTS, of["verdict"] & 0xFF),
        cost_ns=of["cost"] if kernel else None,
        len=of["len"],
        proto=ip.proto_name(of["proto"]),
        src=address(of["src"], of["version"]),
        sport=of["sport"] if ports else None,
        dst=address(of["dst"], of["version"]),
        dport=of["dport"] if ports else None,
        flags=ip.tcp_flag_names(of["tcp_flags"]) if known & packet.TCP_FLAGS else None,
        icmp=f"{of['icmp_type']}/{of['icmp_code']}" if known & packet.ICMP else None,
        frag=_frag(known, of["frag_id"], of["frag_off"]),
        mark=None if of["flags"] & record.F_NO_MARK else of["mark"],
        mac_dst=_mac(of["mac"][:6]) if ethernet else None,
        mac_src=_mac(of["mac"][6:12]) if ethernet else None,
        ct_state=_ct_state(tracked, of["ct_info"]),
        ct_orig_src=address(of["ct_orig_src"], family) if tracked else None,
        ct_orig_sport=of["ct_orig_sport"] if ct_ports else None,
        ct_orig_dst=address(of["ct_orig_dst"], family) if tracked else None,
        ct_orig_dport=of["ct_orig_dport"] if ct_ports else None,
        call=of["call"],
        parent=of["parent"] or None,
        journey=of["journey"],
        flow=of["flow"],
        partial=of["partial"],
        host=of["host"],
        ruleset=of["ruleset"],
        tables=of["tables"],
        trace_id=of["trace_id"] or None,
    )


def _rule(
    of: dict[str, Any], family: int, step: Step, names: Names, rulesets: Mapping[int, Rulesets]
) -> str | None:
    """Returns the text of the deciding rule; None for a policy or if unknown."""
    rules = rulesets.get(of["host"])
    if rules is None or not of["ruleset"] or step.match == "policy":
        return None
    table = names.text(of["table"])
    if of["tables"]:
        family = NFT + of["tables"]
    return rules.text(of["netns"], family, table, step.chain, step.rulenum, of["ruleset"])
