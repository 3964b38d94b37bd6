# SPDX-License-Identifier: GPL-2.0-only
"""Rows as pcapng: valid blocks, one packet per form, bounded memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.trace.row import Row, Step
from ipttrace.trace.store import Store
from ipttrace.view import pcapng
from ipttrace.view.pcapng import Pcapng
from tests.data.packets import FORWARD, OUTPUT, POSTROUTING, PREROUTING, SENT, Stream
from tests.data.records import Array
from tests.data.rows import BRIDGED, PLAIN

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6


@dataclass
class Block:
    kind: int
    head: bytes
    data: bytes
    options: list[tuple[int, bytes]]

    @property
    def comments(self) -> list[str]:
        return [value.decode() for code, value in self.options if code == 1]

    def option(self, code: int) -> bytes:
        (value,) = [value for found, value in self.options if found == code]
        return value


def blocks(data: bytes) -> list[Block]:
    """All blocks, with every length checked."""
    found = []
    heads = {SECTION: 16, INTERFACE: 8, PACKET: 20}
    while data:
        kind, size = struct.unpack_from("<II", data)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, size - 4) == (size,)
        body, data = data[8 : size - 4], data[size:]
        head, body = body[: heads[kind]], body[heads[kind] :]
        captured = struct.unpack_from("<I", head, 12)[0] if kind == PACKET else 0
        packet, body = body[:captured], body[captured + -captured % 4 :]
        options = []
        while True:
            code, length = struct.unpack_from("<HH", body)
            value, body = body[4 : 4 + length], body[4 + length + -length % 4 :]
            if not code:
                break
            options.append((code, value))
        assert body == b""
        found.append(Block(kind, head, packet, options))
    return found


def written(store: Any, *batches: Any) -> list[Block]:
    output = Pcapng()
    data = b"".join(output.rows(store, seqs)[0] for seqs in batches or [range(store.end)])
    return blocks(output.begin({}) + data + output.end())


def packets(found: list[Block]) -> list[Block]:
    return [block for block in found if block.kind == PACKET]


def interfaces(found: list[Block]) -> list[str]:
    return [block.option(2).decode() for block in found if block.kind == INTERFACE]


def stream() -> Stream:
    return Stream(Store(10_000))


class OneRow(Store):
    """A store with one row, given by the test."""

    def __init__(self, row: Row) -> None:
        super().__init__(10_000)
        self._row = row
        Stream(self).call(0, OUTPUT, SENT, (b"OUTPUT", 1, 0), first=True, out=b"eth0")

    def rows(self, seqs: Sequence[int] | Array) -> list[Row]:
        return [self._row]


@given(st.text(st.characters(), max_size=40))
def test_any_text_gives_valid_blocks_and_printable_comments(text: str) -> None:
    # GIVEN a row with any text in its names, including surrogates
    path = (Step(text, 1, text),)
    names: dict[str, Any]
    names = dict.fromkeys(("comm", "in_", "out", "table", "rule", "verdict"), text)
    row = replace(PLAIN, hook=text, path=path, **names)
    # WHEN it is written with the same text in HELLO
    output = Pcapng({PLAIN.netns: text})
    about = {"kernel": text, "arch": text, "host": text, "expr": [text]}
    data = output.begin(about) + output.rows(OneRow(row), range(1))[0] + output.end()
    # THEN every block is valid, and all text is printable UTF-8
    for block in blocks(data):
        texts = {SECTION: (1, 2, 3, 4), INTERFACE: (2, 3), PACKET: (1,)}[block.kind]
        assert all(value.decode().isprintable() for c, value in block.options if c in texts)


def test_a_rule_too_long_for_an_option_ends_in_an_ellipsis() -> None:
    row = replace(PLAIN, rule="🔥" * 70_000)
    comment = packets(written(OneRow(row)))[0].comments[0]
    assert comment.startswith("FORWARD filter FORWARD:2 ACCEPT 850 ns rule: 🔥")
    assert comment.endswith("🔥…")


def test_a_rewritten_packet_appears_before_and_after() -> None:
    # GIVEN a journey whose packet changes between two tables of a hook
    one = stream()
    changed = SENT[:1] + b"\x10" + SENT[2:]
    arriving: dict[str, Any] = {"in": b"eth0"}
    for at, packet in enumerate((SENT, SENT, changed)):
        one.call(at, PREROUTING, packet, (b"PREROUTING", 1, 2), first=not at, **arriving)
    # WHEN it is written
    first, second = packets(written(one.trace.store))
    # THEN there is a packet per form, with the traversals of that form
    assert (first.data, second.data) == (SENT, changed)
    assert [len(first.comments), len(second.comments)] == [3, 2]
    # AND both have the same packet id
    assert first.option(5) == second.option(5)


@pytest.mark.parametrize(("verdict", "device"), [(0, "eth0"), (1, "eth1"), (2, "eth0")])
def test_a_forwarded_packet_is_on_the_outgoing_device_only_if_accepted(
    verdict: int, device: str
) -> None:
    one = stream()
    path = (b"FORWARD", 1, 0)
    devices: dict[str, Any] = {"in": b"eth0", "out": b"eth1"}
    one.call(0, FORWARD, SENT, path, first=True, verdict=verdict, **devices)
    found = written(one.trace.store)
    assert interfaces(found) == [device]
    (packet,) = packets(found)
    assert packet.option(2) == struct.pack("<I", 1 if device == "eth0" else 2)


def test_batches_that_split_a_journey_give_the_same_packets() -> None:
    one = stream()
    for at in range(23):
        one.call(at * 3, OUTPUT, SENT, (b"OUTPUT", 1, 2), first=True, skb=at, out=b"eth0")
        one.call(at * 3 + 1, POSTROUTING, SENT, (b"POSTROUTING", 1, 2), skb=at, out=b"eth0")
    store = one.trace.store
    assert len(packets(written(store))) == 23
    assert written(store, *([seq] for seq in range(store.end))) == written(store)
    # A selection in any order comes out by time.
    assert written(store, range(store.end)[::-1]) == written(store)


def test_a_packet_is_written_after_a_pause() -> None:
    one, output = stream(), Pcapng()
    one.call(0, OUTPUT, SENT, (b"OUTPUT", 1, 2), first=True, out=b"eth0")
    # GIVEN a packet that may have more traversals
    assert output.rows(one.trace.store, range(1)) == (b"", 1)
    # WHEN no row comes for a while THEN it is written, once
    assert [block.kind for block in blocks(output.pause())] == [INTERFACE, PACKET]
    assert output.end() == b""


def test_packets_are_written_during_the_stream() -> None:
    # GIVEN packets over a second
    one, output = stream(), Pcapng()
    for at in range(10):
        one.call(at * 100_000, OUTPUT, SENT, (b"OUTPUT", 1, 2), first=True, skb=at, out=b"eth0")
    # WHEN they are fed THEN all are written except those of the last 100 ms
    assert len(packets(blocks(output.rows(one.trace.store, range(10))[0]))) == 8


def test_packets_held_back_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng, "_MOST_HELD", 7)
    monkeypatch.setattr(pcapng, "_MOST_COMMENTS", 3)
    monkeypatch.setattr(pcapng, "_MOST_INTERFACES", 2)
    # GIVEN many packets at one time, each on its own device
    one, output = stream(), Pcapng()
    for at in range(23):
        one.call(0, OUTPUT, SENT, (b"OUTPUT", 1, 2), first=True, skb=at, out=b"eth%d" % at)
    found = blocks(output.rows(one.trace.store, range(23))[0])
    # THEN the oldest are written, and excess devices share one interface
    assert len(packets(found)) == 23 - 7
    assert interfaces(found) == ["eth0", "eth1", "(too many devices)"]
    # AND an endless journey becomes several packets
    again = stream()
    for _ in range(7):
        again.call(0, OUTPUT, SENT, (b"OUTPUT", 1, 2), out=b"eth0")
    found = packets(written(again.trace.store))
    assert [len(block.comments) - 1 for block in found] == [3, 3, 1]


def test_evicted_rows_are_not_counted() -> None:
    one = stream()
    one.call(0, OUTPUT, SENT, (b"OUTPUT", 1, 2), first=True, out=b"eth0")
    assert Pcapng().rows(one.trace.store, np.arange(5, 9))[1] == 0
    assert Pcapng().rows(one.trace.store, [])[1] == 0


def test_conntrack_s_mark_and_zone_and_the_ports_of_a_bridge_are_in_the_comment() -> None:
    text = " ".join(packets(written(OneRow(replace(BRIDGED, index=0))))[0].comments)
    assert "conntrack INVALID" in text
    assert "ct mark 0xcafe, ct zone 7, physin =port1, physout port2" in text
    assert "ip filter" in text
