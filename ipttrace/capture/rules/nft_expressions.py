# SPDX-License-Identifier: GPL-2.0-only
"""What a rule of nftables is made of: what it counted, and whether iptables has words for it.

iptables-nft-save prints a rule with a set, or with two addresses, as if it had none:
where somebody has added such a rule to a table of iptables, its words are not to be
believed.  Expressions come from the kernel as bytes (linux/netfilter/nf_tables.h) and
are taken apart here; what does not fit ends them.  Must not do I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ipttrace.capture.netlink.nft.wire import attributes
from ipttrace.netfilter import NFPROTO_IPV4

_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_HEAD: Final = struct.Struct("=HH")
_TYPE: Final = 0x3FFF

# Said in full by iptables: matches and targets are its own.
_WHOLE: Final = frozenset({b"match", b"target", b"immediate", b"log", b"limit"})
# enum nft_meta_keys: mark, devices by index and name, trace, layer 4's protocol, packet type.
_META_KEYS: Final = frozenset({3, 4, 5, 6, 7, 12, 16, 19})
_NETWORK, _TRANSPORT = 1, 2  # enum nft_payload_bases
# Fields of a header, at an offset: of how many bytes.  Addresses, protocol, fragments,
# time to live; next header.
_FIELDS: Final = {
    NFPROTO_IPV4: {6: (2,), 8: (1,), 9: (1,), 12: range(1, 5), 16: range(1, 5)},
    10: {6: (1,), 8: range(1, 17), 24: range(1, 17)},
}
# Ports; type and code of ICMP; flags of TCP.
_ABOVE: Final = {0: (1, 2), 1: (1,), 2: (2,), 13: (1,)}
_EQUAL: Final = frozenset({0, 1})  # NFT_CMP_EQ, NFT_CMP_NEQ
# What may be masked: addresses, fragments; flags of TCP; mark.
_MASKED: Final = {(1, 6), (1, 8), (1, 12), (1, 16), (1, 24), (2, 13), (0, 3)}
# What must have been told before a field of layer 4 means anything.
_PROTOCOLS: Final = {(0, 16), (1, 9), (1, 6)}
_BETWEEN: Final = frozenset({0, 1, 3, 5})  # and NFT_CMP_LTE, NFT_CMP_GTE


def expressions(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and attributes of each expression of a NFTA_RULE_EXPRESSIONS."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            return
        if kind & _TYPE == _ELEMENT:
            found = attributes(data[at + 4 : at + length])
            yield found.get(1, b"").split(b"\0", 1)[0], found.get(2, b"")
        at += (length + 3) & ~3


def counted(data: bytes) -> tuple[int, int] | None:
    """Packets and bytes of the rule's first counter; None where it has none."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _HEAD.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        # The name comes first.  Not to take apart all the others is five times as quick.
        if data[at + 8 : at + 16] == b"counter\0" and kind & _TYPE == _ELEMENT:
            found = attributes(attributes(data[at + 4 : at + length]).get(2, b""))
            if len(found.get(1, b"")) == 8 and len(found.get(2, b"")) == 8:
                return int.from_bytes(found[2], "big"), int.from_bytes(found[1], "big")
        at += (length + 3) & ~3
    return None


def sayable(family: int, data: bytes) -> bool:
    """Whether iptables says all of the rule that it prints, of family NFPROTO_IPV4 or _IPV6."""
    told: set[tuple[int, int]] = set()  # iptables prints the last of two alike
    last = (-1, -1)
    for name, inner in expressions(data):
        found = attributes(inner)
        if name in _WHOLE:
            continue
        if name == b"bitwise":
            if last not in _MASKED or not _masks(found):
                return False
        elif name == b"cmp":
            if _number(found, 2) not in (_BETWEEN if last[0] == _TRANSPORT else _EQUAL):
                return False
        elif name == b"range":
            if last[0] != _TRANSPORT:
                return False
        else:
            last = _loaded(name, found, family, told)
            if last[0] < 0 or last in told:
                return False
            told.add(last)
    return True


def _loaded(
    name: bytes, found: dict[int, bytes], family: int, told: set[tuple[int, int]]
) -> tuple[int, int]:
    """What an expression brings in: a base and an offset, 0 and a key; negative: no words."""
    if name == b"counter":
        return 3, 0
    if name == b"meta" and (key := _number(found, 2)) in _META_KEYS:
        return 0, key
    if name == b"payload" and 5 not in found:  # NFTA_PAYLOAD_SREG: it would write
        base, offset, length = (_number(found, kind) for kind in (2, 3, 4))
        fields = _ABOVE if base == _TRANSPORT else _FIELDS.get(family, {})
        known = base == _NETWORK or (base == _TRANSPORT and not told.isdisjoint(_PROTOCOLS))
        if known and length in fields.get(offset, ()):
            return base, offset
    return -1, -1


def _masks(bitwise: dict[int, bytes]) -> bool:
    """No shift, no exclusive or: NFTA_BITWISE_OP, NFTA_BITWISE_XOR."""
    flipped = attributes(bitwise.get(5, b"")).get(1, b"")
    return not any(bitwise.get(6, b"")) and not any(flipped)


def _number(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind, b"")
    return int.from_bytes(value, "big") if len(value) == 4 else -1
