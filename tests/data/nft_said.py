# SPDX-License-Identifier: GPL-2.0-only
"""Messages of nftables' trace, real ones and made ones, and all that they go through.

The real ones, in nft_messages.json, were told on lo of a namespace with the rules
of its first snapshot: 12 datagrams, a TCP connection refused, pings, and a rule added
in between.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipttrace.capture.netlink.calls import CallMaker, Calls, Numbers, in_order
from ipttrace.capture.netlink.journeys import NftJourneys
from ipttrace.capture.netlink.nft.decode import Decoder
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.netlink.nft.places import Generations
from ipttrace.capture.netlink.reader import Batch
from ipttrace.stream import frames, record
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace

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
    """NFT_MSG_TRACE, or another one of nf_tables'."""
    size = 20 + len(body)
    return struct.pack("=IHHIIBBH", size, 10 << 8 | kind, 0, 0, 0, family, 0, 0) + body


def changed(genid: int) -> list[bytes]:
    """What tells of a new generation: that of a rule, and NFT_MSG_NEWGEN."""
    rule = message(text(1, "t") + text(2, "a"), 6)
    return [rule, message(attribute(1, struct.pack(">I", genid)), 15)]


def udp(dport: int = 53, sport: int = 4000, src: str = "10.9.0.1") -> bytes:
    """The network header, and the transport header."""
    source = bytes(map(int, src.split(".")))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 33, 1, 0, 64, 17, 0) + source + b"\x0a\x09\0\2"
    return head + struct.pack(">HHHH", sport, dport, 13, 0)


def told(
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
    """One message.  With a packet it is the first of a run; with a policy, the last."""
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
    """The table of our own: here the packet's journey begins."""
    return told(
        packet_id, "prerouting", 4, ACCEPT, table=OWN, packet=udp() if packet is None else packet
    )


def base(packet_id: int, *rest: bytes, chain: str = "in", packet: bytes | None = None) -> bytes:
    """A run's first message: of the first rule, which says nothing of the packet."""
    return told(packet_id, chain, 10, packet=udp() if packet is None else packet)


def snapshot(genid: int = 1, table: int = 3, **chains: Any) -> Snapshot:
    """Table inet t with these chains: handles, with a number before them the hook's."""
    infos = {
        (INET, "t", name): ChainInfo(*_base(given[0]), list(given[1]))
        for name, given in chains.items()
    }
    return Snapshot(genid, {(INET, "t"): TableInfo(table, 0, None)}, infos)


def _base(hook: int | None) -> tuple[Any, ...]:
    return (None,) * 2 + ("", None, None) if hook is None else (hook, 0, "filter", 1, None)


def batch(messages: list[bytes], time: int = SECOND, width: int = 512) -> Batch:
    """As Reader makes them: what is longer than `width` is cut."""
    lengths = np.array([min(len(one), width) for one in messages], np.int32)
    widest = (int(lengths.max(initial=0)) + 3) & ~3
    data = np.zeros((len(messages), widest), np.uint8)
    for at, one in enumerate(messages):
        data[at, : lengths[at]] = np.frombuffer(one[:width], np.uint8)
    return Batch(time, data, lengths)


class Said:
    """Messages in, rows out: what an engine does with those of one namespace."""

    def __init__(self, first: Snapshot, own: str = OWN) -> None:
        self.decoder = Decoder(first.genid)
        self.generations = Generations(first, 1)
        self.asked = True  # of packets that others trace
        numbers = Numbers()
        places = self.decoder.places
        self.journeys = NftJourneys(places, own.encode(), numbers, self._accept)
        self.calls = CallMaker(places, numbers, record.SOURCE_NFT)
        self.trace = Trace()
        self._decoder = frames.Decoder()
        self._writer = frames.Writer(self)
        self._writer.hello({"engine": "netlink", "clock": {"mono": 0, "wall": 0}})
        self.records = 0

    def _accept(self, packets: Array, caplens: Array) -> Array:
        assert len(packets) == len(caplens)
        return np.full(len(packets), self.asked)

    def write(self, data: bytes | memoryview, /) -> None:
        for frame in self._decoder.feed(data):
            self.trace.feed(frame)

    def hear(self, said: list[bytes] | Batch, now: int = 0) -> Calls:
        """To records and rows; `now`: 0 for the time of the messages."""
        one = said if isinstance(said, Batch) else batch(said)
        events = self.decoder.decode(one)
        return self.take(events, now or one.time)

    def take(self, events: Array, now: int) -> Calls:
        asked = self.journeys.assign(events)
        self.generations.locate(asked, self.decoder.places)
        calls = self.calls.feed(asked, now)
        if len(calls.entries) or len(calls.cut):
            for kind, records in enumerate(in_order([calls])[0]):
                self.records += len(records)
                self._writer.records(kind, records)
        return calls

    def rows(self, now: int = 1 << 40) -> list[Row]:
        """All, when nothing more comes."""
        self.take(np.zeros(0, self.decoder.decode(batch([])).dtype), now)
        self.trace.finish()
        store = self.trace.store
        return store.rows(range(store.first, store.end))


def real() -> tuple[str, list[Snapshot], list[bytes]]:
    """The name of the table that flipped, the rulesets before and after, the messages."""
    held = json.loads(_DATA.read_text())
    snapshots = [
        Snapshot(
            one["genid"],
            {(family, name): TableInfo(*rest, None) for family, name, *rest in one["tables"]},
            {
                (family, table, chain): ChainInfo(hook, priority, kind, policy, None, handles)
                for family, table, chain, hook, priority, kind, policy, handles in one["chains"]
            },
        )
        for one in held["snapshots"]
    ]
    return held["own"], snapshots, [bytes.fromhex(one) for one in held["messages"]]
