# SPDX-License-Identifier: GPL-2.0-only
"""Damaged lists of expressions never raise, and an intact one is recognised."""

from __future__ import annotations

import random

from ipttrace.capture.netlink.nft import wire
from ipttrace.capture.netlink.nft.nftrace import may_clear

SET_1 = wire.trace()
SET_0 = SET_1.replace(b"\5\0\1\0\1", b"\5\0\1\0\0", 1)  # a value of one byte


def test_constants_are_told_apart() -> None:
    assert not may_clear(SET_1)
    assert SET_0 != SET_1
    assert may_clear(SET_0)
    assert may_clear(SET_1 + SET_0)
    assert may_clear(SET_0 + SET_1)


def test_damaged_expressions_never_raise() -> None:
    rng = random.Random(4711)
    for _ in range(3_000):
        data = bytearray(SET_1 + SET_0)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        may_clear(bytes(data[: rng.randrange(len(data) + 1)]))
