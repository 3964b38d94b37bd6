# SPDX-License-Identifier: GPL-2.0-only
"""Keys of packets: by which a packet is recognised at other hooks, though rules change it.

Left out is what NAT changes, or conntrack's tuple before NAT is taken instead;
what mangling targets change is left out always: TTL, HL, TOS, DSCP, ECN and checksums, of
TCP options and the length of their room (TCPMSS, TCPOPTSTRIP).  Must not do I/O.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import IPV6_EXTENSIONS, NFT_NET_LEN
from ipttrace.stream import record

# enum ip_conntrack_info
_CT_RELATED: Final = 1
_CT_REPLY: Final = 3
_CT_RELATED_REPLY: Final = 4
_TCP: Final = 6
_FRAGMENT: Final = 44


class Keys(NamedTuple):
    """Hashes of packets, uint64, shape (n,): equal for the same packet.

    `full`: of addresses and ports before NAT, and of `invariant`; `invariant`: of the
    fields that NAT leaves alone; `coarse`: as `full`, of the network header alone if
    nftables reports no more of the packet.
    """

    full: Array
    invariant: Array
    coarse: Array


# By IP protocol: ports in the first four bytes (TCP, UDP, DCCP, SCTP, UDP-Lite); an
# identifier, which NAT translates (ICMP, ICMPv6).
PORTED: Final = np.isin(np.arange(256), [6, 17, 33, 132, 136])
_HAS_IDENTIFIER: Final = np.isin(np.arange(256), [1, 58])
_L4_LEN: Final = 20  # bytes of the transport header that are hashed


def packet_keys(
    packets: Array, caplens: Array, tuples: Array | None = None, valid: Array | None = None
) -> Keys:
    """The keys of packets, uint8, shape (n, k), from the network header on.

    `caplens`: shape (n,), captured lengths; `tuples`: see tuples_before_nat, used instead
    of the packet's own addresses and ports if `valid`, bool, shape (n,).
    """
    count, width = packets.shape
    if not count:
        return Keys(*(np.zeros(0, np.uint64) for _ in Keys._fields))
    six = packets[:, 0] >> 4 == 6
    proto = np.where(six, packets[:, 6], packets[:, 9]).astype(np.intp)
    l4 = np.where(six, 40, (packets[:, 0] & 15).astype(np.intp) * 4)
    column = np.arange(_L4_LEN)
    at = l4[:, None] + column
    captured = at < np.minimum(caplens, width)[:, None]
    header = np.where(captured, packets[np.arange(count)[:, None], np.minimum(at, width - 1)], 0)
    header = header.astype(np.uint8)
    has_ports, has_identifier = PORTED[proto], _HAS_IDENTIFIER[proto]
    ports = header[:, :4].copy()
    ports[has_identifier, :2] = 0
    ports[has_identifier, 2:] = header[has_identifier, 4:6]
    ports[~has_ports & ~has_identifier] = 0
    # NAT changes ports, identifiers and checksums.
    header[has_ports, :4] = 0
    # ECN --ecn-tcp-remove clears two of TCP's flags.
    tcp = proto == _TCP
    header[tcp, 16:18] = 0
    offset = (header[tcp, 12] >> 4).astype(np.uint16) * 4
    header[tcp, 12] &= 0x0F
    header[tcp, 13] &= 0x3F
    header[np.isin(proto, (17, 33, 136)), 6:8] = 0
    header[proto == 132, 8:12] = 0
    header[has_identifier, 2:6] = 0
    header[has_identifier, 18:20] = 0  # the checksum of the packet inside an ICMP error
    fixed = np.zeros((count, 24), np.uint8)
    fixed[:, :_L4_LEN] = header
    fixed[:, 20] = proto
    fixed[:, 21] = six
    rest = np.zeros((count, 8), np.uint8)
    rest[~six, :6] = packets[~six, 2:8]  # length, identification, fragment
    rest[~six, 4] &= 0x3F  # without DF
    rest[six, :2] = packets[six, 4:6]
    # The length of TCP's data: options may be added and removed.
    total = (rest[tcp, 0].astype(np.uint16) << 8 | rest[tcp, 1]) - offset
    rest[tcp, :2] = total.astype(">u2").view(np.uint8).reshape(-1, 2)
    invariant = _mix_bytes(np.concatenate([fixed, rest], axis=1))
    hidden = opaque(six, proto, l4)
    addresses = np.zeros((count, 40), np.uint8)
    addresses[~six, :4] = packets[~six, 12:16]
    addresses[~six, 16:20] = packets[~six, 16:20]
    addresses[six, :32] = packets[six, 8:40]
    addresses[:, 32:36] = ports
    if tuples is not None and valid is not None:
        addresses[valid, :36] = tuples[valid]
    full = coarse = _mix_bytes(addresses) ^ invariant
    if hidden.any():
        # Of an IPv6 fragment that is not the first, nftables reports not even an address.
        fragment = six & (proto == _FRAGMENT)
        hidden &= ~(fragment & ((header[:, 2] != 0) | (header[:, 3] >= 8)))
        fixed[hidden, :_L4_LEN] = 0
        addresses[hidden, 32:36] = 0
        without = np.concatenate([fixed[hidden], rest[hidden]], axis=1)
        coarse = full.copy()
        coarse[hidden] = _mix_bytes(addresses[hidden]) ^ _mix_bytes(without)
    return Keys(full, invariant, coarse)


def opaque(six: Array, proto: Array, l4: Array) -> Array:
    """Whether nftables does not report where the transport header is: bool, shape (n,).

    `six`: is it IPv6; `proto`: of the first header; `l4`: offset behind the first header.
    """
    found: Array = np.where(six, IPV6_EXTENSIONS[proto], l4 > NFT_NET_LEN)
    return found


def tuples_before_nat(records: Array) -> tuple[Array, Array]:
    """Conntrack's addresses and ports of packets before NAT: uint8, shape (n, 36).

    `records`: shape (n,), with an entry's ct_* fields and `flags`.  Source, destination,
    ports; of ICMP the identifier at its place in a packet.  Second, bool, shape (n,): is
    there a tuple, and is it of the packet itself rather than of one that it relates to?
    """
    info = records["ct_info"]
    valid = (records["flags"] & record.F_CONNTRACK != 0) & (info != _CT_RELATED)
    valid &= info != _CT_RELATED_REPLY
    tuples = np.zeros((len(records), 36), np.uint8)
    reply = info >= _CT_REPLY
    for direction, rows in (("orig", ~reply), ("reply", reply)):
        tuples[rows, :16] = records[f"ct_{direction}_src"][rows]
        tuples[rows, 16:32] = records[f"ct_{direction}_dst"][rows]
        for at, end in ((32, "sport"), (34, "dport")):
            ports = records[f"ct_{direction}_{end}"][rows].astype(">u2")
            tuples[rows, at : at + 2] = ports.view(np.uint8).reshape(-1, 2)
    icmp = (records["ct_proto"] == 1) | (records["ct_proto"] == 58)
    # conntrack has the identifier as source port, type and code as destination port.
    tuples[icmp, 34:36] = tuples[icmp, 32:34]
    tuples[icmp, 32:34] = 0
    return tuples, valid


def _mix_bytes(data: Array) -> Array:
    words = np.ascontiguousarray(data).view(np.uint64)
    found = np.zeros(len(data), np.uint64)
    for column in range(words.shape[1]):
        found = _mix(found, words[:, column])
    return found


def _mix(a: Array, b: Array) -> Array:
    with np.errstate(over="ignore"):
        mixed = (a ^ b.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9) + a
        return mixed ^ mixed >> np.uint64(32)
