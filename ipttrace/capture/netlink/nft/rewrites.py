# SPDX-License-Identifier: GPL-2.0-only
"""Which bytes of a packet's headers a rule may change.

The kernel reports a packet's headers with the first rule that it hits in a chain, after
that rule.  Works on a rule's expressions as the kernel lists them (NFTA_RULE_EXPRESSIONS,
linux/netfilter/nf_tables.h).  Must not do I/O.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Final, NamedTuple

from ipttrace.capture.netlink.nft.nftrace import each_expression
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6

# A set of bytes is a number: a bit for each byte of the network header (40) and of the
# transport header (20), one for the link-layer header, one for the transport checksum.
TRANSPORT: Final = 40
LINK: Final = 1 << 60
CHECKSUM: Final = 1 << 61
ALL: Final = (1 << 62) - 1

_PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LEN, _PAYLOAD_SOURCE = 2, 3, 4, 5
_PAYLOAD_SUM_OFFSET, _PAYLOAD_SUM_FLAGS = 7, 8
_EXTHDR_DREG, _EXTHDR_OP = 1, 6
_TCPOPT: Final = 1  # NFT_EXTHDR_OP_TCPOPT
_TARGET_NAME: Final = 1
_BASE_LINK, _BASE_NETWORK, _BASE_TRANSPORT = 0, 1, 2
_IP_SUM: Final = 0b11 << 10

# Expressions that leave the packet alone.  NAT is done behind the chain, not in the rule.
_HARMLESS: Final = frozenset(
    (
        *(b"bitwise", b"byteorder", b"cmp", b"connlimit", b"counter", b"ct", b"dup", b"dynset"),
        *(b"fib", b"flow_offload", b"fwd", b"hash", b"immediate", b"inner", b"last", b"limit"),
        *(b"log", b"lookup", b"masq", b"match", b"meta", b"nat", b"notrack", b"numgen", b"objref"),
        *(b"osf", b"queue", b"quota", b"range", b"redir", b"reject", b"rt", b"socket"),
        *(b"synproxy", b"tproxy", b"tunnel", b"xfrm"),
    )
)
_ONLY_READ: Final = _HARMLESS | {b"payload"}  # if there is no _SOURCE_HEAD
# Expressions that never make a packet miss the rule.
_NEVER_MISS: Final = frozenset((b"counter", b"immediate", b"last", b"log", b"notrack", b"numgen"))
# The names in a list of expressions: each follows the heads of its element and attribute.
_NAMES: Final = re.compile(rb"\x01[\x00\x80]..\x01\x00([a-z_]+)\x00", re.DOTALL)
_SOURCE_HEAD: Final = struct.pack("=HH", 8, _PAYLOAD_SOURCE)

_TOS = {4: 0b10 | _IP_SUM, 6: 0b11}
_TTL = {4: 1 << 8 | _IP_SUM, 6: 1 << 7}
_TARGETS: Final[dict[str, dict[int, int]]] = {
    "TTL": _TTL,
    "HL": _TTL,
    "TOS": _TOS,
    "DSCP": _TOS,
    "ECN": {4: 0b10 | _IP_SUM | 0b11 << TRANSPORT + 12 | CHECKSUM},
    "TCPMSS": {
        4: 0b11 << 2 | _IP_SUM | 1 << TRANSPORT + 12 | CHECKSUM,
        6: 0b11 << 4 | 1 << TRANSPORT + 12 | CHECKSUM,
    },
    "TCPOPTSTRIP": {4: CHECKSUM, 6: CHECKSUM},
    "CHECKSUM": {4: CHECKSUM, 6: CHECKSUM},
    "SNPT": {6: (1 << 16) - 1 << 8 | CHECKSUM},
    "DNPT": {6: (1 << 16) - 1 << 24 | CHECKSUM},
}
"""What targets of xtables may change, by IP version; none for those of _HARMLESS_TARGETS."""
_HARMLESS_TARGETS: Final = frozenset(
    (
        *("ACCEPT", "AUDIT", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DNAT", "DROP", "HMARK"),
        *("IDLETIMER", "LED", "LOG", "MARK", "MASQUERADE", "NETMAP", "NFLOG", "NFQUEUE", "NOTRACK"),
        *("QUEUE", "RATEEST", "REDIRECT", "REJECT", "RETURN", "SECMARK", "SET", "SNAT", "SYNPROXY"),
        *("TEE", "TPROXY", "TRACE", "ULOG"),
    )
)


class Rewrite(NamedTuple):
    """Bytes that a rule may change if it is hit, and even if it is not."""

    hit: int
    missed: int


_NONE: Final = Rewrite(0, 0)


def target_rewrites(name: str, version: int) -> int:
    """The bytes that a target of xtables may change in packets of an IP version (4, 6)."""
    if name in _HARMLESS_TARGETS:
        return 0
    return _TARGETS.get(name, {}).get(version, ALL)


def rewrites(expressions: bytes, family: int) -> Rewrite:
    """The bytes that a rule may change; `family`: NFPROTO_* of its table."""
    names = _NAMES.findall(expressions)
    if not expressions:
        return _NONE
    if _SOURCE_HEAD not in expressions and _ONLY_READ.issuperset(names) and names:
        return _NONE
    return _rewrites(expressions, family)


@lru_cache(1 << 12)
def _rewrites(expressions: bytes, family: int) -> Rewrite:
    hit = missed = 0
    for name, inner in each_expression(expressions):
        # What was changed stays so if this expression ends the rule.
        if name not in _NEVER_MISS:
            missed = hit
        if name == b"payload":
            hit |= _payload(inner)
        elif name == b"exthdr":
            if _EXTHDR_DREG not in inner:
                tcp = _number(inner, _EXTHDR_OP) == _TCPOPT
                hit |= CHECKSUM if tcp else ALL
        elif name == b"target":
            version = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 6}.get(family, 0)
            target = inner.get(_TARGET_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
            if version:
                hit |= target_rewrites(target, version)
            elif target in ("snat", "dnat", "redirect"):  # of ebtables
                hit |= LINK
            elif target not in ("mark", "arpreply"):
                hit |= ALL
        elif name not in _HARMLESS:
            hit |= ALL
    return Rewrite(hit, missed)


def _payload(inner: dict[int, bytes]) -> int:
    if _PAYLOAD_SOURCE not in inner:
        return 0
    base, offset = _number(inner, _PAYLOAD_BASE), _number(inner, _PAYLOAD_OFFSET)
    written = _bytes(offset, _number(inner, _PAYLOAD_LEN))
    found = CHECKSUM if _number(inner, _PAYLOAD_SUM_FLAGS) else 0
    if base == _BASE_LINK:
        return LINK
    if base == _BASE_NETWORK:
        return found | (written | _IP_SUM) & (1 << TRANSPORT) - 1
    if base == _BASE_TRANSPORT:
        written |= _bytes(_number(inner, _PAYLOAD_SUM_OFFSET), 2)
        return CHECKSUM | (written & (1 << 20) - 1) << TRANSPORT
    # Behind the transport header, which may be as short as UDP's or an ICMP error's.
    return CHECKSUM | ((1 << 20) - (1 << 4)) << TRANSPORT


def _bytes(offset: int, count: int) -> int:
    return (1 << min(count, 64)) - 1 << min(offset, 64)


def _number(inner: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(inner.get(kind, b""), "big")
