# SPDX-License-Identifier: GPL-2.0-only
"""Damaged netlink messages cause no exception, no endless loop and no growth of memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ipttrace.capture.netlink.attributes import NFGEN, attributes
from ipttrace.capture.netlink.events import NFT_PACKET_LEN
from ipttrace.capture.netlink.reader import Batch
from ipttrace.stream import record
from tests.data import nft_messages
from tests.data.nft_messages import SECOND, Pipeline, batch, captured

MESSAGES = 100_000
PORTION = 500

Rng = np.random.Generator
Bytes = npt.NDArray[np.uint8]


def attribute_offsets(data: Bytes, lengths: npt.NDArray[np.int32]) -> list[list[int]]:
    """Where each message's attributes begin, nested ones too."""
    found = []
    for row, length in zip(data, lengths.tolist(), strict=True):
        heads, at, raw = [], NFGEN, row.tobytes()
        while at + 4 <= length:
            size = int.from_bytes(raw[at : at + 2], "little")
            heads.append(at)
            if raw[at + 2 : at + 4] == b"\x05\x80":
                heads.append(at + 4)
            at += (max(size, 4) + 3) & ~3
        found.append(heads)
    return found


class Mutator:
    """Damages captured messages."""

    def __init__(self, seed: int) -> None:
        self.rng: Rng = np.random.default_rng(seed)
        self.own, self.snapshots, messages = captured()
        complete = batch(messages)
        self.data, self.lengths = complete.data, complete.lengths
        self.heads = attribute_offsets(self.data, self.lengths)

    def batch(self, time: int) -> Batch:
        """A part of the captured messages in order, each damaged once or twice."""
        rng = self.rng
        first = int(rng.integers(len(self.lengths)))
        which = (first + np.arange(PORTION)) % len(self.lengths)
        if rng.random() < 0.2:
            rng.shuffle(which)
        data, lengths = self.data[which].copy(), self.lengths[which].copy()
        damages = [
            *(self.flip_bits, self.set_header, self.cut, self.set_value, self.set_name),
            *(self.replace, self.repeat),
        ]
        # Mostly damages that leave parts readable.
        chosen = rng.choice(len(damages), (PORTION, 2), p=[0.2, 0.3, 0.1, 0.2, 0.1, 0.02, 0.08])
        for at in range(PORTION):
            for which_damage in chosen[at, : 1 + int(rng.random() < 0.3)].tolist():
                damages[which_damage](data[at], lengths, at, self.heads[int(which[at])])
        return Batch(time, data, lengths)

    def flip_bits(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        where = self.rng.integers(0, int(lengths[at]) or 1, 3)
        row[where] ^= self.rng.integers(0, 256, 3).astype(np.uint8)

    def set_header(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        """Changes the length or type of an attribute."""
        head = heads[int(self.rng.integers(len(heads)))] + 2 * int(self.rng.random() < 0.5)
        value = self.rng.choice([0, 1, 3, 4, 5, 7, 8, 12, 255, 0x8005, 0xFFFC, 0xFFFF])
        row[head : head + 2] = np.frombuffer(int(value).to_bytes(2, "little"), np.uint8)

    def cut(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        lengths[at] = self.rng.integers(0, int(lengths[at]) + 1)

    def set_value(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        """Sets the bytes of a value to an extreme."""
        head = heads[int(self.rng.integers(len(heads)))]
        row[head + 4 : head + 12] = self.rng.choice([0, 0x7F, 0x80, 0xFF])

    def set_name(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        """Puts bytes into a name that must not reach a terminal."""
        head = heads[int(self.rng.integers(min(3, len(heads))))]
        name = np.frombuffer(b"\x1b]0;x\x07\xe2\x80\xae\xff%s\n", np.uint8)
        name = name[: max(0, len(row) - head - 4)]
        row[head + 4 : head + 4 + len(name)] = name

    def replace(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        row[:] = self.rng.integers(0, 256, len(row))
        lengths[at] = self.rng.integers(0, len(row) + 1)

    def repeat(self, row: Bytes, lengths: Bytes, at: int, heads: list[int]) -> None:
        """Appends the same attributes a second time, if there is room."""
        size = int(lengths[at])
        room = min(size - NFGEN, len(row) - size) & ~3
        if room > 0:
            row[size : size + room] = row[NFGEN : NFGEN + room]
            lengths[at] = size + room


@pytest.mark.parametrize("seed", range(4))
def test_100000_damaged_messages_neither_stop_the_engine_nor_fill_its_memory(seed: int) -> None:
    # GIVEN the engine's pipeline from messages to rows
    damaged = Mutator(seed)
    pipeline = Pipeline(damaged.snapshots[0], damaged.own)
    time, number = SECOND, 1
    for turn in range(MESSAGES // 4 // PORTION):
        # WHEN damaged messages come, and now and then a new ruleset
        time += 50_000_000
        calls = pipeline.feed(damaged.batch(time))
        changes, pipeline.decoder.changes = pipeline.decoder.changes, []
        for genid, begun in changes:
            number += 1
            newest = damaged.snapshots[turn % 2]
            pipeline.generations.change(genid, begun, number, newest)
        # THEN the records made of them are consistent
        assert len(calls.exits) == len(calls.entries) == len(calls.priority)
        assert np.isin(calls.exits["call"], calls.entries["call"]).all()
        known = np.concatenate([calls.entries["call"], calls.cut["call"]])
        assert np.isin(calls.rules["call"], known).all()
        assert (calls.entries["caplen"] <= NFT_PACKET_LEN).all()
        assert (calls.entries["source"] == record.SOURCE_NFT).all()
    # AND the rows contain no control characters
    rows = pipeline.rows()
    assert len(rows) > 300
    for row in rows:
        shown = [row.table, *(step.chain for step in row.path)]
        assert all(name.isprintable() for name in shown), shown
    # AND memory does not grow with the number of messages
    assert len(pipeline.generations._order) <= 64
    assert len(pipeline.generations._cache) <= 1 << 17
    assert pipeline.calls._pending is None
    assert pipeline.decoder.unread > 0


def test_datagrams_that_are_not_messages_do_not_stop_the_engine() -> None:
    pipeline = Pipeline(nft_messages.snapshot(**{"in": (1, [10])}))
    for junk in ([b""], [b"\0"], [b"\0" * 15], [b"\xff" * 19], [], [b"\xff" * 511, b""]):
        assert not len(pipeline.feed(batch(junk)).entries)
    pipeline.feed(
        [
            nft_messages.flip(1),
            nft_messages.first_message(1),
            nft_messages.trace_message(1, "in", policy=1),
        ]
    )
    assert [row.verdict for row in pipeline.rows()] == ["ACCEPT"]


def test_messages_of_nothing_but_empty_attributes_are_read_in_a_moment() -> None:
    # GIVEN as many attributes as a message can have, of length 4, and of length 0
    full = nft_messages.message(b"\4\0\1\0" * 16_000)
    endless = nft_messages.message(b"\0\0\1\0" * 16_000)
    one = batch([full, endless] * 64, width=1 << 16)
    of = attributes(one.data, one.lengths, NFGEN, 17)
    # THEN parsing stops early
    assert of.size.max() == 0
    assert not of.has(1, 1).any()


@pytest.mark.parametrize("width", [32, 64, 128])
def test_the_part_of_a_message_that_was_cut_off_is_not_invented(width: int) -> None:
    # GIVEN a mailbox narrower than the messages
    own, snapshots, messages = captured()
    decoder = Pipeline(snapshots[0], own).decoder
    read = 0
    for one in messages:
        complete, cut = decoder.decode(batch([one])), decoder.decode(batch([one], width=width))
        # THEN each field has the value of the complete message, or none
        for event, full in zip(cut, complete, strict=False):
            read += 1
            for name in ("id", "handle", "kind"):
                assert event[name] == full[name], name
            for name in ("mark", "iif", "oif", "family"):
                assert event[name] in (full[name], 0), name
            assert event["verdict"] == full["verdict"]
            assert event["last"] == full["last"]
            assert event["caplen"] <= full["caplen"]
            assert event["chain"] == full["chain"]
    assert (read > 0) == (width == 128)
