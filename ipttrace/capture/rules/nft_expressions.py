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
_NETWORK, _TRANSPORT = 1, 2  # enum nft_payload_bases
# Fields of the network header by offset, and the lengths of them that iptables prints:
# fragmentation, TTL, protocol, addresses; IPv6's next header and addresses.
_FIELDS: Final = {
    NFPROTO_IPV4: {6: (2,), 8: (1,), 9: (1,), 12: range(1, 5), 16: range(1, 5)},
    NFPROTO_IPV6: {6: (1,), 8: range(1, 17), 24: range(1, 17)},
}
# The same of the transport header: ports; type and code of ICMP; TCP flags.
_TRANSPORT_FIELDS: Final = {0: (1, 2), 1: (1,), 2: (2,), 13: (1,)}
# Fields that iptables prints with a mask, as in `_loaded`: fragmentation, addresses; TCP
# flags; mark.
_MASKED: Final = {(1, 6), (1, 8), (1, 12), (1, 16), (1, 24), (2, 13), (0, 3)}
# One of these must be checked first for a field of the transport header to mean anything.
_PROTOCOLS: Final = {(0, 16), (1, 9), (1, 6)}
# enum nft_cmp_ops: EQ and NEQ; for the transport header also LTE and GTE.
_EQUAL: Final = frozenset({0, 1})
_BETWEEN: Final = frozenset({0, 1, 3, 5})


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
    checked: set[tuple[int, int]] = set()  # of two checks of a field iptables prints the last
    last = (-1, -1)
    for name, inner in expressions(data):
        found = attributes(inner)
        if name in _COMPLETE:
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
            last = _loaded(name, found, family, checked)
            if last[0] < 0 or last in checked:
                return False
            checked.add(last)
    return True


def _loaded(
    name: bytes, found: dict[int, bytes], family: int, checked: set[tuple[int, int]]
) -> tuple[int, int]:
    """Returns what an expression loads: (base, offset) of a header, or (0, meta key).

    (3, 0) for a counter; negative if iptables does not print it.
    """
    if name == b"counter":
        return 3, 0
    if name == b"meta" and (key := _number(found, 2)) in _META_KEYS:
        return 0, key
    if name == b"payload" and 5 not in found:  # NFTA_PAYLOAD_SREG writes to the packet
        base, offset, length = (_number(found, kind) for kind in (2, 3, 4))
        fields = _TRANSPORT_FIELDS if base == _TRANSPORT else _FIELDS.get(family, {})
        known = base == _NETWORK or (base == _TRANSPORT and not checked.isdisjoint(_PROTOCOLS))
        if known and length in fields.get(offset, ()):
            return base, offset
    return -1, -1


def _masks(bitwise: dict[int, bytes]) -> bool:
    """Returns whether it only masks: no shift (NFTA_BITWISE_OP), no NFTA_BITWISE_XOR."""
    flipped = attributes(bitwise.get(5, b"")).get(1, b"")
    return not any(bitwise.get(6, b"")) and not any(flipped)


def _number(found: dict[int, bytes], kind: int) -> int:
    """Returns a big-endian u32 attribute, -1 if there is none."""
    value = found.get(kind, b"")
    return int.from_bytes(value, "big") if len(value) == 4 else -1
