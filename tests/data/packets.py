# SPDX-License-Identifier: GPL-2.0-only
"""Fixed packets, also in the pcapng golden file: NAT, a drop, IPv6, hostile names.

Must not read a clock or anything else of this machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from tests.data.records import MONO, entry, joined, leave, rule, tcp, udp, v4
from tests.data.rows import COMMENT, START

ABOUT = {"engine": "kernel", "kernel": "6.1.0-56-amd64", "arch": "x86_64", "host": "router\x1b[2J"}
NAMES = {4026531840: "host"}
ELSEWHERE = 4026532999

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
DROP, ACCEPT = 0, 1

SENT = v4(6, "10.0.0.1", "10.0.0.254", tcp(40001, 8443, 2))
REWRITTEN = v4(6, "10.0.0.1", "192.168.100.200", tcp(40001, 443, 2), ident=8)
QUESTION = v4(17, "10.0.0.1", "10.0.0.53", udp(5353, 53))
LONG = v4(17, "10.0.0.1", "10.0.0.53", udp(9, 9, b"x" * 1372))
SIX = struct.pack(">IHBB", 6 << 28, 8, 17, 64) + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"
SIX += b"\x20\x01\x0d\xb8" + bytes(11) + b"\x02" + udp(53, 65535)


class RuledStore(Store):
    """A store whose row 4 was dropped by a rule with a long hostile comment."""

    def rows(self, seqs: Sequence[int] | Array) -> list[Row]:
        return [
            replace(row, rule=COMMENT.rule) if row.index == 4 else row for row in super().rows(seqs)
        ]


class Stream:
    """A trace filled call by call."""

    def __init__(self, store: Store) -> None:
        self.trace = Trace(store=store)
        self._call = 0
        clock = {"mono": MONO, "wall": START}
        hello = ABOUT | {"clock": clock}
        self.trace.feed(Frame(Kind.HELLO, json.dumps(hello).encode()))

    def call(
        self,
        at: int,
        hook: int,
        packet: bytes,
        *path: tuple[bytes, int, int],
        first: bool = False,
        verdict: int = ACCEPT,
        cost: int = 12_345,
        **fields: Any,
    ) -> None:
        """Adds a call, `at` µs into the trace; `path`: chain, rulenum, match of each hit."""
        self._call += 1
        skb = fields.setdefault("skb", 0xFFFF888104A3B200)
        given = {
            "hook": hook,
            "flags": record.F_FIRST if first else record.F_FOLLOWED,
            "netns": 4026531840,
            "pid": 4242,
            "comm": b"ping",
        }
        into = entry(self._call, at * 1000, packet, **given | fields)
        if fields.get("flags"):
            into["flags"] |= given["flags"]
        self.trace.feed(Frame(Kind.ENTRY, into.tobytes()))
        rules = [rule(self._call, n, *step, at=at * 1000) for n, step in enumerate(path)]
        self.trace.feed(Frame(Kind.RULE, joined(*rules).tobytes()))
        end = leave(self._call, len(path), verdict, at * 1000 + cost, skb=skb, cost=cost, mark=0)
        self.trace.feed(Frame(Kind.EXIT, end.tobytes()))


def store() -> Store:
    """Nine traversals of five journeys; rows 0 to 3 are one journey, rewritten by NAT."""
    stream = Stream(RuledStore(1000))
    eth0: dict[str, Any] = {"in": b"eth0"}
    eth1: dict[str, Any] = {**eth0, "out": b"eth1"}
    lo: dict[str, Any] = {"in": b"lo"}
    hostile: dict[str, Any] = {"in": b"a b\x1b[31m"}
    stream.call(0, PREROUTING, SENT, (b"PREROUTING", 3, 2), first=True, table=b"mangle", **eth0)
    stream.call(20, PREROUTING, SENT, (b"PREROUTING", 1, 0), table=b"nat", **eth0)
    tracked: dict[str, Any] = {
        "flags": record.F_CONNTRACK,
        "ct_info": 2,
        "ct_proto": 6,
        "ct_orig_src": bytes((10, 0, 0, 1)),
        "ct_orig_sport": 40001,
        "ct_orig_dst": bytes((10, 0, 0, 254)),
        "ct_orig_dport": 8443,
        "mark": 1,
    }
    path = ((b"FORWARD", 2, 0), (b"DOCKER-USER", 3, 1), (b"FORWARD", 4, 2))
    stream.call(50, FORWARD, REWRITTEN, *path, **eth1, **tracked)
    stream.call(
        80, POSTROUTING, REWRITTEN, (b"POSTROUTING", 1, 2), table=b"nat", out=b"eth1", **tracked
    )
    # Dropped in FORWARD: never on eth1.
    stream.call(
        100, FORWARD, QUESTION, (b"FORWARD", 3, 0), first=True, verdict=DROP, skb=0x2000, **eth1
    )
    # Longer than a record holds.
    stream.call(200, OUTPUT, LONG, (b"OUTPUT", 1, 2), first=True, skb=0x3000, out=b"lo")
    stream.call(210, INPUT, LONG, (b"INPUT", 1, 2), skb=0x3000, **lo)
    stream.call(
        300,
        INPUT,
        SIX,
        (b"\x1b]0;x\x07\xe2\x80\xae", 1, 0),
        first=True,
        skb=0x4000,
        family=10,
        netns=ELSEWHERE,
        comm=b"=cmd\x1b[2J",
        **hostile,
    )
    # A record with a wrong captured length.
    stream.call(
        400, INPUT, b"", (b"INPUT", 1, 2), first=True, skb=0x5000, caplen=65535, len=7, out=b""
    )
    stream.trace.finish()
    return stream.trace.store
