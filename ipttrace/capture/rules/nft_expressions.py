# SPDX-License-Identifier: GPL-2.0-only
"""The expressions of an nftables rule: its counter, and whether iptables prints all of it.

iptables-nft-save prints a rule with a set, or with two source addresses, as if it had
none: if nft added such a rule to a table of iptables, its printed text is wrong.
Decodes NFTA_RULE_EXPRESSIONS (linux/netfilter/nf_tables.h); a wrong length ends the
list.  Must not do I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ipttrace.capture.netlink.nft.wire import attributes
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6

_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_HEAD: Final = struct.Struct("=HH")  # struct nlattr
_TYPE: Final = 0x3FFF  # NLA_TYPE_MASK

# iptables prints these completely: matches and targets are its own.
_COMPLETE: Final = frozenset({b"match", b"target", b"immediate", b"log", b"limit"})
# enum nft_meta_keys: mark, devices by index and name, nftrace, l4proto, pkttype.
_META_KEYS: Final = frozenset({3, 4, 5, 6, 7, 12, 16, 19})
_NFTRACE: Final = 12
_NETWORK, _TRANSPORT = 1, 2  # enum nft_payload_bases
# Fields of the network header by offset, and the lengths of them that iptables prints:
# fragmentation, TTL, protocol, addresses; IPv6's next header and addresses.
_FIELDS: Final = {
    NFPROTO_IPV4: {6: (2,), 8: (1,), 9: (1,), 12: range(1, 5), 16: range(1, 5)},
    NFPROTO_IPV6: {6: (1,), 8: range(1, 17), 24: range(1, 17)},
}
# What iptables prints with a mask, as in `_loaded`: addresses; TCP flags; mark.  Of the
# fragmentation field it prints only whether the offset is 0.
_MASKED: Final = {
    NFPROTO_IPV4: frozenset({(1, 12), (1, 16), (2, 13), (0, 3)}),
    NFPROTO_IPV6: frozenset({(1, 8), (1, 24), (2, 13), (0, 3)}),
}
_FRAGMENT, _OFFSET_MASK = (1, 6), b"\x1f\xff"
_PROTOCOL: Final = {
    NFPROTO_IPV4: frozenset({(0, 16), (1, 9)}),
    NFPROTO_IPV6: frozenset({(0, 16), (1, 6)}),
}
# Protocols whose transport header iptables prints, by offset and length.
_PORTS, _ICMP, _TCP = (b"\x06", b"\x11"), (b"\x01", b"\x3a"), (b"\x06",)
_TRANSPORT_FIELDS: Final = {
    (0, 2): (*_PORTS, *_ICMP),
    (0, 4): _PORTS,
    (2, 2): _PORTS,
    (0, 1): _ICMP,
    (1, 1): _ICMP,
    (13, 1): _TCP,
}
# enum nft_cmp_ops: EQ and NEQ; for ports also LTE and GTE.
_EQUAL: Final = frozenset({0, 1})
_BETWEEN: Final = frozenset({0, 1, 3, 5})
_ONLY_EQUAL: Final = frozenset({0})
_BOTH_PORTS: Final = (2, -4)  # as in `_loaded`: source and destination port at once

# Of a comparison, what comes before its value: its register and operator.  The value of a
# port or an address does not matter, that of one byte does, and whether it is 0.
_CMP_HEAD: Final = 32
_CMP_OP: Final = _HEAD.pack(8, 2)  # NFTA_CMP_OP
_ONE_BYTE: Final = 5  # length of NFTA_DATA_VALUE with one byte
_MOST_KNOWN: Final = 1 << 12
_Field = tuple[int, int]
"""What is checked, as `_loaded` returns it."""

_known: dict[tuple[int, tuple[bytes, ...]], bool] = {}  # by family and `_tokens`


def expressions(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and NFTA_EXPR_DATA of each expression of a rule."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            return
        if kind & _TYPE == _ELEMENT:
            found = attributes(data[at + 4 : at + length])
            yield found.get(1, b"").split(b"\0", 1)[0], found.get(2, b"")
        at += (length + 3) & ~3


def counter(data: bytes) -> tuple[int, int] | None:
    """Returns packets and bytes of a rule's first counter; None if it has none."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        # The name comes first: skipping other expressions undecoded is five times as fast.
        if data[at + 8 : at + 16] == b"counter\0" and kind & _TYPE == _ELEMENT:
            found = attributes(attributes(data[at + 4 : at + length]).get(2, b""))
            if len(found.get(1, b"")) == 8 and len(found.get(2, b"")) == 8:
                return int.from_bytes(found[2], "big"), int.from_bytes(found[1], "big")
        at += (length + 3) & ~3
    return None


def iptables_prints_all(family: int, data: bytes) -> bool:
    """Returns whether iptables prints the rule completely.

    `family`: NFPROTO_IPV4 or NFPROTO_IPV6; `data`: as in `expressions`.
    """
    key = (family, _tokens(data))
    known = _known.get(key)
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[key] = _prints_all(family, data)
    return known


def _tokens(data: bytes) -> tuple[bytes, ...]:
    """Returns of each expression all that decides whether iptables prints it.

    Rules differ in addresses and ports, which do not: most have tokens already seen.
    """
    found = []
    at = 0
    while at + 8 <= len(data):
        length, _ = _HEAD.unpack_from(data, at)
        if length < 8 or at + length > len(data):
            break
        named, _ = _HEAD.unpack_from(data, at + 4)
        if data[at + 8 : at + 3 + named] in _COMPLETE:
            found.append(data[at + 4 : at + 3 + named])
        elif (
            data[at + 8 : at + 12] == b"cmp\0"
            and data[at + 24 : at + 28] == _CMP_OP
            and data[at + 36] > _ONE_BYTE
            and any(data[at + 40 : at + length])
        ):
            found.append(data[at + 4 : at + _CMP_HEAD])
        elif data[at + 8 : at + 16] == b"counter\0":
            found.append(b"counter")
        else:
            found.append(data[at : at + length])
        at += (length + 3) & ~3
    return tuple(found)


def _prints_all(family: int, data: bytes) -> bool:
    checked: set[_Field] = set()  # of two checks of a field iptables prints the last
    protocol = b""  # of the transport header, if the rule has checked it
    last: _Field = (-1, -1)
    counted = False
    for name, inner in expressions(data):
        found = attributes(inner)
        if name in _COMPLETE:
            continue
        if name == b"counter":
            if counted:
                return False
            counted = True
            continue
        if name == b"bitwise":
            if not _masks(found, last, family):
                return False
        elif name == b"cmp":
            op, value = _number(found, 2), attributes(found.get(3, b"")).get(1, b"")
            if op not in _compared(last, protocol):
                return False
            if last == _FRAGMENT and family == NFPROTO_IPV4 and any(value):
                return False
            if last in _PROTOCOL[family]:
                protocol = value if op == 0 else b"not"
        elif name == b"range":
            if _compared(last, protocol) != _BETWEEN:
                return False
        else:
            last = _loaded(name, found, family, protocol)
            loads = {(2, 0), (2, 2)} if last == _BOTH_PORTS else {last}
            again = protocol and last in _PROTOCOL[family]
            if last[0] < 0 or again or not checked.isdisjoint(loads):
                return False
            if last == (2, 1) and (2, 0) not in checked:
                return False  # a code without a type
            checked |= loads
    return True


def _loaded(name: bytes, found: dict[int, bytes], family: int, protocol: bytes) -> _Field:
    """Returns what an expression loads: (base, offset) of a header, or (0, meta key).

    _BOTH_PORTS for both; negative if iptables does not print it.  `protocol`: see
    `_prints_all`.
    """
    key = _number(found, 2)
    if name == b"meta" and key in _META_KEYS:
        # NFTA_META_SREG: it writes to the packet, which only -j TRACE does.
        return (0, key) if 3 not in found or key == _NFTRACE else (-1, -1)
    if name == b"payload" and 5 not in found:  # NFTA_PAYLOAD_SREG writes to the packet
        base, offset, length = (_number(found, kind) for kind in (2, 3, 4))
        if base == _NETWORK and length in _FIELDS.get(family, {}).get(offset, ()):
            return base, offset
        if base == _TRANSPORT and protocol in _TRANSPORT_FIELDS.get((offset, length), ()):
            return _BOTH_PORTS if length == 4 else (base, offset)
    return -1, -1


def _compared(last: _Field, protocol: bytes) -> frozenset[int]:
    """Returns the comparisons, enum nft_cmp_ops, of what was loaded last that iptables prints."""
    if last == _BOTH_PORTS or (last[0] == _TRANSPORT and protocol in _ICMP):
        return _ONLY_EQUAL
    return _BETWEEN if last in ((2, 0), (2, 2)) else _EQUAL


def _masks(bitwise: dict[int, bytes], last: _Field, family: int) -> bool:
    """Returns whether it is a mask that iptables prints: no shift (NFTA_BITWISE_OP), no XOR."""
    mask, flipped = (attributes(bitwise.get(kind, b"")).get(1, b"") for kind in (4, 5))
    if any(bitwise.get(6, b"")) or any(flipped):
        return False
    if last == _FRAGMENT and family == NFPROTO_IPV4:
        return mask == _OFFSET_MASK
    return last in _MASKED[family]


def _number(found: dict[int, bytes], kind: int) -> int:
    """Returns a big-endian u32 attribute, -1 if there is none."""
    value = found.get(kind, b"")
    return int.from_bytes(value, "big") if len(value) == 4 else -1
