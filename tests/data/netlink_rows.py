# SPDX-License-Identifier: GPL-2.0-only
"""Rows as the netlink engine tells them: of nftables, iptables-nft and legacy tables.

What it cannot know has numbers in the records all the same, which must not be shown.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from ipttrace.stream import record
from ipttrace.stream.frames import Decoder, Writer
from ipttrace.trace.session import Trace
from tests.data.records import Array, entry, joined, leave, rule, udp, v4

NETNS = 4026532456
INET, IP = 1, 2
TRACE_ID = 0x1F2E3D4C
RULE, RETURN, POLICY = range(3)

Hits = list[tuple[bytes, int, int]]


class Told:
    """Calls of packets as records, kernel and netlink side by side."""

    def __init__(self) -> None:
        self.entries: list[Array] = []
        self.rules: list[Array] = []
        self.exits: list[Array] = []

    def call(
        self, table: bytes, hits: Hits, *, verdict: int | None = 1, first: bool = False, **of: Any
    ) -> None:
        """`verdict`: None where nobody told it; `of`: other fields of the entry."""
        call = len(self.entries) + 1
        packet = of.pop("packet", v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, bytes(90))))
        flags = record.F_FIRST if first else record.F_FOLLOWED
        given = {"netns": NETNS, "hook": 1, "table": table, "flags": flags, "in": b"lan0"}
        if of.get("source"):
            given |= {"caplen": 60}
        self.entries.append(entry(call, 1000 * call, packet, **{**given, **of}))
        for at, (chain, number, match) in enumerate(hits):
            self.rules.append(rule(call, at, chain, number, match, 1000 * call))
        untold = {"flags": record.EXIT_F_UNTOLD} if verdict is None else {}
        end = 255 if verdict is None else verdict
        self.exits.append(leave(call, len(hits), end, at=1000 * call, **untold))

    def nft(self, table: bytes, tables: int, hits: Hits, **of: Any) -> None:
        """A run of a base chain of nftables."""
        given = {"source": record.SOURCE_NFT, "tables": tables, "trace_id": TRACE_ID}
        self.call(table, hits, **{**given, **of})

    def legacy(self, table: bytes, hits: Hits, **of: Any) -> None:
        """A legacy table as nfnetlink_log tells of it."""
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
        """The rows of a stream that says it is of `engine`."""
        sink = BytesIO()
        Writer(sink).hello({"engine": engine, "host": "lab", "netns": {str(NETNS): "router"}})
        trace = Trace()
        for frame in Decoder().feed(sink.getvalue() + self.data()):
            trace.feed(frame)
        trace.finish()
        return trace


def input_of_everything() -> Told:
    """One packet in INPUT: by the kernel engine, legacy, iptables-nft, inet; the last drops it."""
    told = Told()
    told.call(b"filter", [(b"INPUT", 1, RULE)], first=True, pid=0, cpu=3, comm=b"swapper/3")
    told.legacy(b"filter", [(b"INPUT", 1, RULE)], verdict=None)
    told.nft(b"filter", IP, [(b"INPUT", 1, RULE)])
    told.nft(b"t", INET, [(b"in", 2, RULE), (b"jail", 0, RULE)], verdict=0)
    return told
