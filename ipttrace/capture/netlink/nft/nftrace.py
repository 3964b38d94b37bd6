# SPDX-License-Identifier: GPL-2.0-only
"""Finds rules that end the tracing of a packet: `meta nftrace set 0`.

Works on a rule's expressions as the kernel lists them (NFTA_RULE_EXPRESSIONS,
linux/netfilter/nf_tables.h).  Must not do I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ipttrace.capture.netlink.nft.wire import attributes

_LIST_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_EXPR_NAME, _EXPR_DATA = 1, 2  # enum nft_expr_attributes
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2  # enum nft_immediate_attributes
_META_KEY, _META_SOURCE = 2, 3  # enum nft_meta_attributes
_DATA_VALUE: Final = 1  # NFTA_DATA_VALUE
# The attribute NFTA_META_KEY with NFT_META_NFTRACE: few rules have it.
_NFTRACE_KEY: Final = struct.pack("=HH", 8, _META_KEY) + struct.pack(">I", 12)
_HEAD: Final = struct.Struct("=HH")
# Expressions that write no register.
_NO_WRITE: Final = frozenset((b"cmp", b"counter", b"limit", b"log", b"objref", b"quota", b"range"))


def may_clear(expressions: bytes) -> bool:
    """Whether the rule may set a packet's nf_trace to 0, so that it is traced no further.

    A value that is not a constant counts: of a map, or of every nth packet.
    """
    if _NFTRACE_KEY not in expressions:
        return False
    constants: dict[bytes, bytes] = {}  # register → value
    for name, inner in _expressions(expressions):
        if name == b"immediate":
            value = attributes(inner.get(_IMMEDIATE_DATA, b"")).get(_DATA_VALUE, b"")
            constants[inner.get(_IMMEDIATE_REGISTER, b"")] = value
        elif name == b"meta" and _META_SOURCE in inner:
            if inner.get(_META_KEY) == _NFTRACE_KEY[4:]:
                # The kernel reads the register's first byte.
                value = constants.get(inner[_META_SOURCE], b"")
                if not value or not value[0]:
                    return True
        elif name not in _NO_WRITE:
            constants.clear()
    return False


def _expressions(listed: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """Name and attributes of each expression; stops where a length does not fit."""
    at = 0
    while at + _HEAD.size <= len(listed):
        length, kind = _HEAD.unpack_from(listed, at)
        if length < _HEAD.size or at + length > len(listed):
            return
        if kind & 0x3FFF == _LIST_ELEMENT:
            one = attributes(listed[at + _HEAD.size : at + length])
            yield one.get(_EXPR_NAME, b"").rstrip(b"\0"), attributes(one.get(_EXPR_DATA, b""))
        at += (length + 3) & ~3
