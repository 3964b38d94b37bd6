# SPDX-License-Identifier: GPL-2.0-only
"""Trace messages of nftables, captured and made, and the pipeline from them to rows.

The captured ones, in nft_messages.json, are from the loopback device of a namespace with
the rules of its first snapshot: 12 datagrams, a TCP connection refused, pings, and a rule
that was added in between.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.capture.netlink.calls import CallMaker, Calls, in_order
from ipttrace.capture.netlink.events import EVENT, UniqueNumbers
from ipttrace.capture.netlink.journeys import NftJourneys
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.capture.netlink.nft.decode import NftTraceDecoder
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.netlink.nft.generations import Generations
from ipttrace.capture.netlink.reader import Batch
from ipttrace.stream import record
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.writer import Writer
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.messages import hello

Array = npt.NDArray[Any]

_DATA = Path(__file__).with_name("nft_messages.json")

# enum nft_trace_attributes, nft_trace_types, nft_verdicts
TABLE, CHAIN, HANDLE, TYPE, VERDICT, ID, LL, NET, TRANSPORT, IIF = range(1, 11)
OIF, MARK, NFPROTO, POLICY = 12, 14, 15, 16
ACCEPT, DROP, CONTINUE, JUMP, GOTO, RETURN = 1, 0, -1, -3, -4, -5
INET = 1
OWN = "ipttrace-7-7"
SECOND = 1_000_000_000


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def message(body: bytes, kind: int = 17, family: int = INET) -> bytes:
    """An NFT_MSG_TRACE message with these attributes, or another message of nf_tables."""
    size = 20 + len(body)
    return struct.pack("=IHHIIBBH", size, 10 << 8 | kind, 0, 0, 0, family, 0, 0) + body


def change_messages(genid: int) -> list[bytes]:
    """The messages of a change: NFT_MSG_NEWRULE, and NFT_MSG_NEWGEN with the generation."""
    rule = message(text(1, "t") + text(2, "a"), 6)
    return [rule, message(attribute(1, struct.pack(">I", genid)), 15)]


def udp(dport: int = 53, sport: int = 4000, src: str = "10.9.0.1") -> bytes:
    """A datagram's network and transport header."""
    source = bytes(map(int, src.split(".")))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 33, 1, 0, 64, 17, 0) + source + b"\x0a\x09\0\2"
    return head + struct.pack(">HHHH", sport, dport, 13, 0)


def trace_message(
    packet_id: int,
    chain: str,
    handle: int = 0,
    code: int = CONTINUE,
    *,
    table: str = "t",
    family: int = INET,
    policy: int | None = None,
    packet: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """One trace message: with a packet the first of a call, with a policy the last."""
    body = attribute(ID, struct.pack(">I", packet_id))
    body += attribute(TYPE, struct.pack(">I", 1 if policy is not None else 3))
    body += text(TABLE, table) + text(CHAIN, chain)
    if handle:
        body += attribute(HANDLE, struct.pack(">Q", handle))
    if policy is None:
        body += attribute(VERDICT | 0x8000, attribute(1, struct.pack(">i", code)))
    else:
        body += attribute(POLICY, struct.pack(">I", policy))
    body += attribute(NFPROTO, struct.pack(">I", 2))
    if packet:
        body += attribute(IIF, struct.pack(">I", 1))
        body += attribute(NET, packet[:20]) + attribute(TRANSPORT, packet[20:])
    return message(body + more, family=family)


def flip(packet_id: int, packet: bytes | None = None) -> bytes:
    """The flip table's message, with which a journey begins."""
    return trace_message(
        packet_id, "prerouting", 4, ACCEPT, table=OWN, packet=udp() if packet is None else packet
    )


def first_message(packet_id: int, chain: str = "in", packet: bytes | None = None) -> bytes:
    """The first message of a call: the first rule, which continues."""
    return trace_message(packet_id, chain, 10, packet=udp() if packet is None else packet)


def snapshot(genid: int = 1, table: int = 3, /, **chains: tuple[int | None, list[int]]) -> Snapshot:
    """Table inet t with these chains, each as (hook or None, handles of its rules)."""
    infos = {
        (INET, "t", name): ChainInfo(*_base(hook), (), list(handles))
        for name, (hook, handles) in chains.items()
    }
    return Snapshot(genid, {(INET, "t"): TableInfo(table, 0, None)}, infos)


def _base(hook: int | None) -> tuple[int | None, int | None, str, int | None]:
    return (None, None, "", None) if hook is None else (hook, 0, "filter", 1)


def batch(messages: list[bytes], time: int = SECOND, width: int = 512) -> Batch:
    """As MailboxReader makes it: messages longer than `width` are cut."""
    lengths = np.array([min(len(one), width) for one in messages], np.int32)
    widest = (int(lengths.max(initial=0)) + 3) & ~3
    data = np.zeros((len(messages), widest), np.uint8)
    for at, one in enumerate(messages):
        data[at, : lengths[at]] = np.frombuffer(one[:width], np.uint8)
    return Batch(time, data, lengths)


class Pipeline:
    """From messages to rows, as the engine does it for one namespace."""

    def __init__(self, first: Snapshot, own: str = OWN) -> None:
        self.decoder = NftTraceDecoder(first.genid)
        self.generations = Generations(first, 1)
        self.matching = True  # does EXPR match packets that others trace?
        numbers = UniqueNumbers()
        chains = self.decoder.chains
        self.journeys = NftJourneys(chains, own.encode(), numbers, self._matches)
        self.names = RecordNames()
        self.calls = CallMaker(chains, numbers, self.names, record.SOURCE_NFT)
        self.trace = Trace()
        self._frames = Decoder()
        self._writer = Writer(self)
        self._writer.hello(hello(engine="netlink", clock={"mono": 0, "wall": 0}))
        self.records = 0

    def _matches(self, packets: Array, caplens: Array) -> Array:
        assert len(packets) == len(caplens)
        return np.full(len(packets), self.matching)

    def write(self, data: bytes | memoryview, /) -> None:
        for frame in self._frames.feed(data):
            self.trace.feed(frame)

    def feed(self, messages: list[bytes] | Batch, now: int = 0) -> Calls:
        """The calls that these messages finish; `now`: 0 for the time of the messages."""
        one = messages if isinstance(messages, Batch) else batch(messages)
        events = self.decoder.decode(one)
        return self.feed_events(events, now or one.time)

    def feed_events(self, events: Array, now: int) -> Calls:
        matching = self.journeys.assign(events)
        self.generations.locate(matching, self.decoder.chains)
        self.decoder.mark_invalid(matching)
        calls = self.calls.feed(matching, now)
        if len(calls.entries) or len(calls.cut):
            self._writer.names(self.names.new)
            self.names.new.clear()
            for kind, records in enumerate(in_order([calls])[0]):
                self.records += len(records)
                self._writer.records(kind, records)
        return calls

    def rows(self, now: int = 1 << 40) -> list[Row]:
        """All rows; call it after the last message."""
        self.feed_events(np.zeros(0, EVENT), now)
        self.trace.finish()
        store = self.trace.store
        return store.rows(range(store.first, store.end))


def captured() -> tuple[str, list[Snapshot], list[bytes]]:
    """The flip table's name, the rulesets before and after the change, the messages."""
    held = json.loads(_DATA.read_text())
    snapshots = [
        Snapshot(
            one["genid"],
            {
                (family, name): TableInfo(handle, flags, None)
                for family, name, handle, flags in one["tables"]
            },
            {
                (family, table, chain): ChainInfo(hook, priority, kind, policy, (), handles)
                for family, table, chain, hook, priority, kind, policy, handles in one["chains"]
            },
        )
        for one in held["snapshots"]
    ]
    return held["own"], snapshots, [bytes.fromhex(one) for one in held["messages"]]
