# SPDX-License-Identifier: GPL-2.0-only
"""What a rule may change: never less than it does, whatever its expressions are."""

from __future__ import annotations

import struct

from ipttrace.capture.netlink.nft.rewrites import ALL, LINK, TRANSPORT, rewrites, target_rewrites
from ipttrace.netfilter import NFPROTO_INET, NFPROTO_IPV4


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def expression(name: bytes, *inner: bytes) -> bytes:
    body = attribute(1, name + b"\0") + attribute(0x8002, b"".join(inner))
    return attribute(0x8001, body)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def store(base: int, offset: int, length: int) -> bytes:
    parts = ((5, 8), (2, base), (3, offset), (4, length), (6, 1), (7, 10), (8, 1))
    return expression(b"payload", *(number(*part) for part in parts))


READ = expression(b"payload", number(1, 8), number(2, 1), number(3, 9), number(4, 1))


def test_bytes_that_a_rule_stores_are_those_that_it_may_change() -> None:
    assert rewrites(READ + expression(b"cmp"), NFPROTO_INET).hit == 0
    daddr = rewrites(READ + store(1, 16, 4), NFPROTO_INET).hit
    assert daddr & 0xFFFFFFFF == 0b1111 << 16 | 0b11 << 10
    port = rewrites(store(2, 2, 2), NFPROTO_INET).hit
    assert port >> TRANSPORT & 0b1111 == 0b1100
    assert rewrites(store(0, 6, 6), NFPROTO_INET).hit == LINK


def test_a_rule_that_is_missed_after_a_store_has_changed_the_packet_all_the_same() -> None:
    missed = rewrites(store(1, 16, 4) + expression(b"cmp"), NFPROTO_INET)
    assert missed.missed == missed.hit != 0
    assert rewrites(store(1, 16, 4) + expression(b"counter"), NFPROTO_INET).missed == 0


def test_what_is_unknown_may_change_everything() -> None:
    assert rewrites(expression(b"novel"), NFPROTO_INET).hit == ALL
    target = expression(b"target", attribute(1, b"NOVEL\0"))
    assert rewrites(target, NFPROTO_IPV4).hit == ALL
    assert target_rewrites("NOVEL", 4) == ALL
    assert target_rewrites("MASQUERADE", 4) == 0


def test_any_cut_of_a_list_is_read_without_an_error() -> None:
    whole = READ + store(1, 1 << 31, 1 << 31) + expression(b"target", attribute(1, b"\xff"))
    for end in range(len(whole)):
        assert 0 <= rewrites(whole[:end], NFPROTO_IPV4).hit <= ALL
