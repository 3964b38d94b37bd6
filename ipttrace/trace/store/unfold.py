# SPDX-License-Identifier: GPL-2.0-only
"""Columns to rows, only for what is shown or written.  Must not do I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, UNKNOWN_HOOK, VERDICTS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import NFT, Rulesets
from ipttrace.trace.store.asides import Asides
from ipttrace.trace.store.names import Names
from ipttrace.trace.store.schema import (
    ENGINES,
    NETLINK,
    OWNER_COLUMNS,
    STATION_COLUMNS,
    STEPS,
)

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

STEP_DTYPE: Final = np.dtype(list(STEPS.items()))

_PLAIN: Final = (
    "engine",
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
    "flow",
    "partial",
    "host",
    "ruleset",
    "tables",
    "exit_flags",
)
# And what many rows have not, in which case all of these are 0.
_RARE: Final = ("ct_flags", "ct_mark", "ct_zone", "physin", "physout")
_OF_STATIONS: Final = STATION_COLUMNS  # likewise
_OF_SOCKETS: Final = OWNER_COLUMNS  # likewise


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


def _ct_state(tracked: bool, info: int, flags: int) -> str | None:
    """Returns the state; `tracked`: of an entry, `info`: ct_info, `flags`: record.CT_*."""
    if tracked or flags & record.CT_STATE:
        return _CT_STATES.get(info)
    if info == _CT_UNTRACKED:
        return "UNTRACKED"
    return "INVALID" if flags & record.CT_INVALID else None


Column = Callable[[str], Array]
"""Returns a column of the rows that are unfolded, by its name."""

# Fields whose values hardly ever repeat: made from columns for all rows at once.
DIRECT: Final[dict[str, Callable[[Column], list[Any]]]] = {
    "time": lambda column: _listed(column("time")),
    "skb": lambda column: [value or None for value in column("skb").tolist()],
    "cost_ns": lambda column: _known(column("cost"), _has_cost(column)),
    "len": lambda column: _known(column("len"), column("flags") & record.F_NO_LEN == 0),
    "journey": lambda column: _listed(column("journey")),
    "trace_id": lambda column: [value or None for value in column("trace_id").tolist()],
}


def _has_cost(column: Column) -> Array:
    """Which rows have a cost: one whose end was not seen has neither that nor a verdict."""
    ended = column("exit_flags") & record.EXIT_F_NO_VERDICT == 0
    found: Array = (column("engine") != NETLINK) & (column("what") == 0) & ended
    return found


def _known(values: Array, known: Array) -> list[Any]:
    """Returns the values as a list, None for those that are not known, bool (n,)."""
    if known.all():
        return _listed(values)
    pairs = zip(values.tolist(), known.tolist(), strict=True)
    return [value if is_known else None for value, is_known in pairs]


def unfold(
    seqs: list[int],
    column: Column,
    path_keys: list[bytes],
    names: Names,
    rulesets: Mapping[int, Rulesets],
    asides: Asides,
) -> list[Row]:
    """Returns the rows with these n sequence numbers, columns and steps (see unfold_paths).

    `rulesets`: by host, for the text of the deciding rule; `asides`: those of the store.
    """
    paths = unfold_paths(path_keys, names)
    plain: tuple[str, ...] = _PLAIN
    if (column("flags") & record.F_CONNTRACK).any() or any(
        column(name).any() for name in ("ct_flags", "physin", "physout")
    ):
        plain += _RARE
    if any(column(name).any() for name in _OF_STATIONS):
        plain += _OF_STATIONS
    if any(column(name).any() for name in _OF_SOCKETS):
        plain += _OF_SOCKETS
    listed = [_listed(column(name)) for name in plain]
    direct = [make(column) for make in DIRECT.values()]
    titles = (*plain, *DIRECT)
    return [
        _row(seq, dict(zip(titles, values, strict=True)), path, names, rulesets, asides)
        for seq, path, *values in zip(seqs, paths, *listed, *direct, strict=True)
    ]


def unfold_paths(keys: list[bytes], names: Names) -> list[tuple[Step, ...]]:
    """Returns the path of each row, from its steps' bytes, of STEP_DTYPE."""
    steps: dict[tuple[int, int, int], Step] = {}

    def step(of: tuple[int, int, int]) -> Step:
        if of not in steps:
            steps[of] = Step(names.text(of[0]), of[1], _name(record.MATCHES, of[2]))
        return steps[of]

    known = {key: tuple(map(step, np.frombuffer(key, STEP_DTYPE).tolist())) for key in set(keys)}
    return [known[key] for key in keys]


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
    asides: Asides,
) -> Row:
    known = of["known"]
    tracked = bool(of["flags"] & record.F_CONNTRACK)
    family = IP_VERSIONS.get(of["family"], of["family"])
    ports = bool(known & packet.PORTS)
    ct_ports = tracked and ip.DECODED[of["ct_proto"]] == ip.HAS_PORTS
    ethernet = of["mac_len"] == _ETHERNET
    decided = of["chain"] != 0
    kernel = of["engine"] != NETLINK
    unknown_verdict = bool(of["exit_flags"] & record.EXIT_F_NO_VERDICT)
    return Row(
        index=seq,
        time=of["time"],
        engine=ENGINES[of["engine"]],
        skb=of["skb"],
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
        cost_ns=of["cost_ns"],
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
        ct_state=_ct_state(tracked, of["ct_info"], of.get("ct_flags", 0)),
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
        trace_id=of["trace_id"],
        **(_rare(of, tracked, names) if "ct_flags" in of else {}),
        drop=_drop(of, unknown_verdict),
        **(_of_station(of, names, asides) if "what" in of else {}),
        **(_of_socket(of, names) if "owner_pid" in of else {}),
    )


def _drop(of: dict[str, Any], unknown_verdict: bool) -> bool | None:
    if what := of.get("what", 0):
        return bool(what == record.DROPPED)
    return None if unknown_verdict else bool(of["verdict"] & 0xFF == DROP)


def _of_station(of: dict[str, Any], names: Names, asides: Asides) -> dict[str, Any]:
    return {
        "reason": names.text(of["reason"]) or None,
        "place": names.text(of["place"]) or None,
        "station": _name(record.STATIONS, of["what"]) if of["what"] else None,
        "aside": asides.get(of["aside"]) if of["aside"] else None,
    }


def _of_socket(of: dict[str, Any], names: Names) -> dict[str, Any]:
    return {
        "owner_pid": of["owner_pid"] or None,
        "owner_comm": names.text(of["owner_comm"]) or None,
        "container": names.text(of["container"]) or None,
    }


def _rare(of: dict[str, Any], tracked: bool, names: Names) -> dict[str, Any]:
    return {
        "ct_mark": of["ct_mark"] if tracked and not of["ct_flags"] & record.CT_NO_MARK else None,
        "ct_zone": of["ct_zone"] if tracked else None,
        "physin": names.text(of["physin"]) or None,
        "physout": names.text(of["physout"]) or None,
    }


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
