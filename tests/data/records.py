# SPDX-License-Identifier: GPL-2.0-only
"""Single records and packets, for tests of single calls."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.stream import record

Array = npt.NDArray[Any]

MONO = 1_000_000_000_000


def _record(dtype: np.dtype[np.void], fields: dict[str, Any]) -> Array:
    made = np.zeros(1, dtype)
    for name, value in fields.items():
        if isinstance(value, bytes) and dtype[name].shape:
            made[name][0, : len(value)] = np.frombuffer(value, np.uint8)
        else:
            made[name] = value
    return made


def entry(call: int, at: int = 0, packet: bytes = b"", **fields: Any) -> Array:
    """An entry record, shape (1,), `at` ns into the trace."""
    given: dict[str, Any] = {
        "call": call,
        "time": MONO + at,
        "skb": 0x1000,
        "family": 2,
        "flags": record.F_FIRST,
        "table": b"filter",
        "len": len(packet),
        "caplen": min(len(packet), 128),
        "packet": packet[:128],
    }
    return _record(record.ENTRY_DTYPE, given | fields)


def rule(call: int, seq: int, chain: bytes, rulenum: int, match: int = 0, at: int = 0) -> Array:
    """A rule record, shape (1,)."""
    fields = {"seq": seq, "chain": chain, "rulenum": rulenum, "match": match, "table": b"filter"}
    return _record(record.RULE_DTYPE, {"call": call, "time": MONO + at, **fields})


def leave(call: int, rules: int, verdict: int = 1, at: int = 0, **fields: Any) -> Array:
    """An exit record, shape (1,)."""
    given = {"time": MONO + at, "skb": 0x1000, "rules": rules, "verdict": verdict, "cost": 500}
    return _record(record.EXIT_DTYPE, {"call": call, **given, **fields})


def station(
    call: int, what: str, at: int = 0, packet: bytes = b"", traced: bool = True, **fields: Any
) -> Array:
    """A station record, shape (1,), of a packet that was traced before unless not `traced`."""
    given: dict[str, Any] = {
        "call": call,
        "time": MONO + at,
        "skb": 0x1000,
        "family": 2,
        "hook": 255,
        "source": record.SOURCE_BPF,
        "len": len(packet),
        "caplen": min(len(packet), 128),
        "packet": packet[:128],
        "what": record.STATIONS.index(what),
        "station_flags": record.STATION_F_MATCHED | (record.STATION_F_TRACED if traced else 0),
    }
    return _record(record.STATION_DTYPE, given | fields)


def joined(*records: Array) -> Array:
    """One array of these records, in their own dtype."""
    found = np.zeros(len(records), records[0].dtype)
    for at, each in enumerate(records):
        found[at] = each[0]
    return found


def v4(proto: int, src: str, dst: str, payload: bytes, frag: int = 0, ident: int = 7) -> bytes:
    """An IPv4 packet."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident, frag, 64, proto, 0)
    return head + bytes(map(int, src.split("."))) + bytes(map(int, dst.split("."))) + payload


def udp(sport: int, dport: int, data: bytes = b"") -> bytes:
    """A UDP datagram."""
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def tcp(sport: int, dport: int, flags: int) -> bytes:
    """A TCP segment without data."""
    return struct.pack(">HHIIHHHH", sport, dport, 1, 1, 0x5000 | flags, 1000, 0, 0)
