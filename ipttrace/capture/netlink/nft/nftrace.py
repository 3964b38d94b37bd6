# SPDX-License-Identifier: GPL-2.0-only
"""What a rule does that matters to tracing: ends it, needs conntrack, gives one verdict.

Works on a rule's expressions as the kernel lists them (NFTA_RULE_EXPRESSIONS,
linux/netfilter/nf_tables.h).  Must not do I/O.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Final

from ipttrace.capture.netlink.nft.wire import attributes
from ipttrace.netfilter import DROP

_LIST_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_EXPR_NAME, _EXPR_DATA = 1, 2  # enum nft_expr_attributes
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2  # enum nft_immediate_attributes
_META_KEY, _META_SOURCE = 2, 3  # enum nft_meta_attributes
_DATA_VALUE, _DATA_VERDICT = 1, 2  # enum nft_data_attributes
_VERDICT_CODE: Final = 1  # NFTA_VERDICT_CODE
_TARGET_NAME: Final = 1  # NFTA_TARGET_NAME
# Targets of iptables with only one verdict; -1: the rules behind it are next (NFT_CONTINUE).
_TARGETS: Final = {b"REJECT": DROP} | dict.fromkeys((b"CONNMARK", b"LOG", b"MARK", b"NFLOG"), -1)
# How the last element begins that can give the verdict, from its name on.
_LAST: Final = (b"immediate\0", b"reject\0", b"target\0")
# The attribute NFTA_META_KEY with NFT_META_NFTRACE: few rules have it.
_NFTRACE_KEY: Final = struct.pack("=HH", 8, _META_KEY) + struct.pack(">I", 12)
_TRACKING_NAMES: Final = frozenset((b"ct", b"nat", b"masq", b"redir"))
# As the bytes of a rule have them, to look at few rules closely.
_TRACKING: Final = tuple(name + b"\0" for name in (*sorted(_TRACKING_NAMES), b"conntrack"))
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
    for name, inner in each_expression(expressions):
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


def needs_conntrack(expressions: bytes) -> bool:
    """Whether the kernel runs packets of the table's family through conntrack for this rule.

    It does for these expressions from the moment that a rule has one: nf_ct_netns_get() in
    net/netfilter/nft_ct.c, nft_nat.c, nft_masq.c, nft_redir.c and xt_conntrack.c.
    """
    if not any(name in expressions for name in _TRACKING):
        return False
    return any(
        name in _TRACKING_NAMES
        or (name == b"match" and inner.get(1, b"").rstrip(b"\0") == b"conntrack")
        for name, inner in each_expression(expressions)
    )


def only_verdict(expressions: bytes) -> int | None:
    """The verdict of all packets that the rule matches: NF_*, or NFT_* below 0; None: unknown.

    Looks at the last expression only.
    """
    start = max(map(expressions.rfind, _LAST)) - 2 * _HEAD.size
    if start < 0:
        return None
    return _only_verdict(expressions[start:])


@functools.lru_cache(4096)
def _only_verdict(tail: bytes) -> int | None:
    found = list(each_expression(tail))
    if len(found) != 1:
        return None
    name, inner = found[0]
    if name == b"reject":
        return DROP
    if name == b"target":
        return _TARGETS.get(inner.get(_TARGET_NAME, b"").split(b"\0", 1)[0])
    data = attributes(inner.get(_IMMEDIATE_DATA, b""))
    code = attributes(data.get(_DATA_VERDICT, b"")).get(_VERDICT_CODE, b"")
    return int.from_bytes(code, "big", signed=True) if len(code) == 4 else None


def each_expression(listed: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
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
