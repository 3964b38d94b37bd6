# SPDX-License-Identifier: GPL-2.0-only
"""Hides the kernel's addresses in records, so that no recording reveals where its memory is.

An address of a packet, a socket or a conntrack entry serves only to recognise it: what
counts is equality.  It is replaced by its SipHash-2-4 under a random key, one for each
arming, which never leaves this process.  The kernel itself hides them so in what it prints
(``%p``, lib/vsprintf.c).  No Python loop over records.  Must not import bcc.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.stream.record import ENTRY, EXIT, Records

Words = npt.NDArray[np.uint64]

FIELDS: Final = ((ENTRY, "skb"), (ENTRY, "sk"), (ENTRY, "ct"), (EXIT, "skb"))
"""Where records contain addresses: the kind, and the field."""

_LENGTH: Final = np.uint64(8 << 56)  # of the message, in its last block
_SLOT_BITS: Final = 14
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, as far from a pattern as can be
_CHUNK: Final = 4096  # words at a time: the four lanes stay in the processor's cache


class HiddenAddresses:
    """Replaces addresses; equal ones by equal numbers, 0 (none) by 0."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key`: 16 bytes, None: random ones."""
        self._key = os.urandom(16) if key is None else key
        # The last value of each slot, and its hash: that of 0 is 0.
        self._values = np.zeros(1 << _SLOT_BITS, np.uint64)
        self._hashes = np.zeros(1 << _SLOT_BITS, np.uint64)

    def hide(self, records: list[Records]) -> None:
        """Replaces the addresses in `records` (entries, rules, exits) in place."""
        columns = [records[kind][name] for kind, name in FIELDS]
        *others, last = columns
        # Entry n and exit n are often of one call.
        self.hide_columns(columns, others if np.array_equal(columns[0], last) else columns)

    def hide_columns(self, columns: Sequence[Words], distinct: Sequence[Words] = ()) -> None:
        """Replaces the addresses in these columns of records in place: shape (n,) each.

        `distinct`: those before columns that are equal to the first ones, if there are any.
        """
        values = np.concatenate(distinct or columns)
        if not len(values):
            return
        hashed = self._hashed(values)
        at = 0
        for column in columns:
            if at == len(values):
                at = 0
            column[:] = hashed[at : at + len(column)]
            at += len(column)

    def _hashed(self, values: Words) -> Words:
        """The SipHash of each value; of most it is remembered, as memory is used again."""
        slots = _slots(values)
        found = self._hashes[slots]
        new = np.flatnonzero(self._values[slots] != values)
        if len(new):
            distinct, inverse = np.unique(values[new], return_inverse=True)
            hashed = siphash(self._key, distinct)
            found[new] = hashed[inverse]
            slots = _slots(distinct)
            self._values[slots], self._hashes[slots] = distinct, hashed
        return found


def _slots(values: Words) -> npt.NDArray[np.int64]:
    return (values * _SPREAD >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)


def siphash(key: bytes, words: Words) -> Words:
    """The SipHash-2-4 of each word as 8 bytes, little-endian, but 0 of 0: shape (n,).

    J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.
    """
    found = np.empty(len(words), np.uint64)
    for at in range(0, len(words), _CHUNK):
        chunk = words[at : at + _CHUNK]
        found[at : at + _CHUNK] = _siphash(key, chunk)
    found[words == 0] = 0
    return found


def _siphash(key: bytes, words: Words) -> Words:
    k0, k1 = (np.uint64(part) for part in struct.unpack("<QQ", key))
    first = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    lanes = np.empty((4, len(words)), np.uint64)
    for lane, constant, part in zip(lanes, first, (k0, k1, k0, k1), strict=True):
        lane[:] = np.uint64(constant) ^ part
    spare = np.empty(len(words), np.uint64)
    for block in (words, _LENGTH):
        lanes[3] ^= block
        _rounds(lanes, spare, 2)
        lanes[0] ^= block
    lanes[2] ^= np.uint64(0xFF)
    _rounds(lanes, spare, 4)
    found: Words = lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3]
    return found


def _rounds(lanes: npt.NDArray[np.uint64], spare: Words, count: int) -> None:
    """SipRound, `count` times, in place."""
    v0, v1, v2, v3 = lanes

    def turn(lane: Words, bits: int) -> None:
        np.left_shift(lane, np.uint64(bits), out=spare)
        np.right_shift(lane, np.uint64(64 - bits), out=lane)
        np.bitwise_or(lane, spare, out=lane)

    def mix(one: Words, other: Words, bits: int) -> None:
        np.add(one, other, out=one)
        turn(other, bits)
        np.bitwise_xor(other, one, out=other)

    for _ in range(count):
        mix(v0, v1, 13)
        turn(v0, 32)
        mix(v2, v3, 16)
        mix(v0, v3, 21)
        mix(v2, v1, 17)
        turn(v2, 32)
