# SPDX-License-Identifier: GPL-2.0-only
"""Records as the netlink engine writes them: of nftables, iptables-nft and legacy tables.

Fields that the engine cannot fill have values nevertheless, which no view may show.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from ipttrace.stream import record
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.writer import Writer
from ipttrace.trace.session import Trace
from tests.data.messages import hello
from tests.data.records import Array, entry, joined, leave, rule, udp, v4

NETNS = 4026532456
INET, IP = 1, 2
TRACE_ID = 0x1F2E3D4C
RULE, RETURN, POLICY = range(3)

Hits = list[tuple[bytes, int, int]]


class RecordedCalls:
    """Records of calls, from the kernel and the netlink engine."""

    def __init__(self) -> None:
        self.entries: list[Array] = []
        self.rules: list[Array] = []
        self.exits: list[Array] = []

    def call(
        self, table: bytes, hits: Hits, *, verdict: int | None = 1, first: bool = False, **of: Any
    ) -> None:
        """Adds a call; `verdict`: None if unknown; `of`: further fields of the entry."""
        call = len(self.entries) + 1
        packet = of.pop("packet", v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, bytes(90))))
        flags = record.F_FIRST if first else record.F_FOLLOWED
        given = {"netns": NETNS, "hook": 1, "table": table, "flags": flags, "in": b"lan0"}
        if of.get("source"):
            given |= {"caplen": 60}
        self.entries.append(entry(call, 1000 * call, packet, **{**given, **of}))
        for at, (chain, number, match) in enumerate(hits):
            self.rules.append(rule(call, at, chain, number, match, 1000 * call))
        unknown = {"flags": record.EXIT_F_NO_VERDICT} if verdict is None else {}
        end = 255 if verdict is None else verdict
        self.exits.append(leave(call, len(hits), end, at=1000 * call, **unknown))

    def nft(self, table: bytes, tables: int, hits: Hits, **of: Any) -> None:
        """Adds a call of a base chain of nftables."""
        given = {"source": record.SOURCE_NFT, "tables": tables, "trace_id": TRACE_ID}
        self.call(table, hits, **{**given, **of})

    def legacy(self, table: bytes, hits: Hits, **of: Any) -> None:
        """Adds a call of a legacy table, as reported by nfnetlink_log."""
        self.call(table, hits, source=record.SOURCE_NFLOG, **of)

    def data(self) -> bytes:
        """All of them as frames of a stream."""
        sink = BytesIO()
        writer = Writer(sink)
        for kind, records in enumerate((self.entries, self.rules, self.exits)):
            if records:
                writer.records(kind, joined(*records))
        return sink.getvalue()

    def trace(self, engine: str = "kernel+netlink") -> Trace:
        """The rows of a stream whose HELLO names `engine`."""
        sink = BytesIO()
        Writer(sink).hello(hello(engine=engine, netns={str(NETNS): "router"}))
        trace = Trace()
        for frame in Decoder().feed(sink.getvalue() + self.data()):
            trace.feed(frame)
        trace.finish()
        return trace


def input_from_every_source() -> RecordedCalls:
    """One packet in INPUT: of the kernel engine, legacy, iptables-nft, inet, which drops it."""
    calls = RecordedCalls()
    calls.call(b"filter", [(b"INPUT", 1, RULE)], first=True, pid=0, cpu=3, comm=b"swapper/3")
    calls.legacy(b"filter", [(b"INPUT", 1, RULE)], verdict=None)
    calls.nft(b"filter", IP, [(b"INPUT", 1, RULE)])
    calls.nft(b"t", INET, [(b"in", 2, RULE), (b"jail", 0, RULE)], verdict=0)
    return calls
