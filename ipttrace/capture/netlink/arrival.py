# SPDX-License-Identifier: GPL-2.0-only
"""Packets as they came to a chain, though its first rule changed them.

nftables reports a packet's headers with the first rule that it hits in a chain, after that
rule.  Bytes that the rule may have changed are taken from what was reported of the packet
before: by the flip table's chain, which is first of all, or by an earlier chain; bytes that
anything else may have changed meanwhile are left out.  Must not do I/O, and must not loop
over packets in Python.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import IPV6_EXTENSIONS, NFT_NET_LEN, NFT_PACKET_LEN
from ipttrace.capture.netlink.nft.rewrites import ALL, CHECKSUM, LINK, TRANSPORT
from ipttrace.netfilter import INGRESS, IP_HOOKS, NAT_PRIORITIES

# How long what was reported of packets is remembered, ns, and of how many events.
_LIFETIME: Final = 1_000_000_000
_MOST: Final = 1 << 15

_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = range(len(IP_HOOKS))
# Pairs of hooks that a packet meets one after the other, as it is but for its TTL.
_FOLLOWS: Final = np.zeros((256, 256), bool)
_FOLLOWS[[0, 1, 2, 3, 4, 0, 0, 0, 2, 3], [0, 1, 2, 3, 4, 1, 2, 4, 4, 4]] = True
_FOLLOWS[INGRESS, [INGRESS, _PREROUTING]] = True
# Where the kernel does NAT, by hook.
_NAT_AT: Final = np.zeros(256, np.int32)
_NAT_AT[[*NAT_PRIORITIES]] = [*NAT_PRIORITIES.values()]
# Offset of the checksum in the transport header, by protocol: TCP, UDP, DCCP, UDP-Lite, ICMPv6.
_CHECKSUM_AT: Final = np.full(256, -1)
_CHECKSUM_AT[[6, 17, 33, 136, 58, 1]] = [16, 6, 6, 6, 2, 2]
_COLUMN: Final = np.arange(NFT_PACKET_LEN)

_HELD: Final = np.dtype(
    [
        ("journey", "u8"),
        ("time", "u8"),
        ("hit", "u8"),  # bytes that the event's rule may have changed
        ("missed", "u8"),  # that rules of its table may have changed unreported
        ("total", "u8"),  # that any rule of its table may have changed
        ("index", "i8"),  # among the new events; -1: none of them
        ("iif", "u4"),
        ("oif", "u4"),
        ("priority", "i4"),
        ("hook", "u1"),
        ("family", "u1"),
        ("head", "?"),
        ("caplen", "u1"),
        ("mac_len", "u1"),
        ("mac", "u1", (16,)),
        ("packet", "u1", (NFT_PACKET_LEN,)),
    ]
)


class Arrivals:
    """What was reported of the packets of one namespace."""

    def __init__(self) -> None:
        self._held = np.zeros(0, _HELD)

    def restore(
        self, events: Array, flips: Array, changed: Array, others: int, *, nat: bool
    ) -> None:
        """Gives first events of calls the headers with which packets came, as far as known.

        `events`: EVENT, located; `flips`: NftJourneys.flips; `changed`: uint64, shape (n, 3),
        of each event the bytes that its rule, unreported rules of its table, and all rules of
        its table may have changed; `others`: bytes that legacy rules may change; `nat`: is
        there NAT in the namespace?
        """
        new = np.zeros(len(flips) + len(events), _HELD)
        for part, source in ((new[: len(flips)], flips), (new[len(flips) :], events)):
            for name in _HELD.names or ():
                if name not in ("hit", "missed", "total", "index"):
                    part[name] = source[name]
        begun = new[: len(flips)]
        begun["priority"] = np.iinfo(np.int32).min
        begun["index"] = -1
        of_events = new[len(flips) :]
        of_events["index"] = np.arange(len(events))
        for column, name in enumerate(("hit", "missed", "total")):
            of_events[name] = changed[:, column]
        new = new[new["head"] | (new["hit"] != 0)]
        if not len(new):
            return
        self._held["index"] = -1
        rows = np.concatenate([self._held, new])
        rows = rows[np.lexsort((rows["time"], rows["journey"]))]
        self._restore(rows, events, np.uint64(others), nat)
        rows = rows[rows["time"].astype(np.int64) >= int(rows["time"].max()) - _LIFETIME]
        if len(rows) > _MOST:
            rows = rows[np.sort(np.argsort(rows["time"], kind="stable")[-_MOST:])]
        self._held = rows

    def _restore(self, rows: Array, events: Array, others: np.uint64, nat: bool) -> None:
        heads = np.flatnonzero(rows["head"])
        if not len(heads):
            return
        # Bytes that may have been changed after each head's report, until the next one's.
        later = np.where(rows["head"], 0, rows["hit"]) | rows["missed"]
        later = np.bitwise_or.reduceat(later, heads)
        told = rows[heads]
        first = np.append(True, told["journey"][1:] != told["journey"][:-1])
        doubt = told["hit"] | told["missed"] | np.where(first, told["total"], 0).astype(np.uint64)
        at = np.flatnonzero((told["index"] >= 0) & (doubt != 0))
        if not len(at):
            return
        now, before, doubt = told[at], told[at - 1], doubt[at]
        known = ~first[at]
        unknown = later[at - 1] | others
        packet, caplen = _packets(now, before, doubt, known, unknown, nat)
        index = now["index"]
        events["packet"][index] = packet
        events["caplen"][index] = caplen
        link = doubt & np.uint64(LINK) != 0
        same = known & (unknown & np.uint64(LINK) == 0) & (now["mac_len"] == before["mac_len"])
        same &= _FOLLOWS[before["hook"], now["hook"]] & (now["hook"] != _POSTROUTING)
        events["mac"][index[link & same]] = before["mac"][link & same]
        events["mac_len"][index[link & ~same]] = 0


def _packets(
    now: Array, before: Array, doubt: Array, known: Array, unknown: Array, nat: bool
) -> tuple[Array, Array]:
    """Packets, uint8 (n, NFT_PACKET_LEN), and their captured lengths, as they came to chains.

    `now`, `before`: reports, _HELD, shape (n,); `doubt`: bytes of `now` that may have been
    changed; `known`: is there a report before?  `unknown`: bytes that `before` does not tell.
    """
    packet, old = now["packet"].copy(), before["packet"]
    six = old[:, 0] >> 4 == 6
    proto = np.where(six, old[:, 6], old[:, 9])
    l4 = np.where(six, 40, (old[:, 0] & 15).astype(np.int64) * 4)
    where = _byte_sets(doubt, l4, proto)
    lost = _byte_sets(unknown, l4, proto)
    # Is it the same packet, where the rule cannot have changed it?
    usable = known & (now["family"] == before["family"])
    usable &= _FOLLOWS[before["hook"], now["hook"]]
    usable &= np.minimum(now["caplen"], NFT_PACKET_LEN) <= before["caplen"]
    identity = np.where(six[:, None], np.isin(_COLUMN, [0, 6]), np.isin(_COLUMN, [4, 5, 9]))
    usable &= ~(identity & ~where & (packet != old)).any(axis=1)
    # A packet that was put together of fragments is reported with the id of one of them.
    usable &= six | ((old[:, 6] & 0x3F | old[:, 7]) == 0)
    # Options and extension headers may be carried out on the way to another hook.
    plain = np.where(six, ~IPV6_EXTENSIONS[old[:, 6]], l4 == 20)
    other_hook = before["hook"] != now["hook"]
    usable &= plain | ~other_hook & (l4 <= NFT_NET_LEN) & ~(six & (old[:, 6] == 44))
    if nat:
        nat_at = _NAT_AT[now["hook"]]
        crossed = other_hook | (before["priority"] <= nat_at) & (nat_at <= now["priority"])
        lost |= crossed[:, None] & _endpoints(six, l4)
    # Routers count down the TTL; bridges do not, whose packets leave by the device they came by.
    routed = (before["hook"] == _PREROUTING) & np.isin(now["hook"], (_FORWARD, _POSTROUTING))
    is_ttl = np.where(six, 7, 8)[:, None] == _COLUMN
    lost |= (routed & (before["iif"] == now["oif"]))[:, None] & is_ttl
    old = np.where(routed[:, None] & is_ttl, old - np.uint8(1), old)
    packet = np.where(where, old, packet)
    lost = where & (lost | ~usable[:, None])
    # A checksum covers the addresses and ports.
    moved = (_endpoints(six, l4) & (packet != before["packet"])).any(axis=1)
    lost |= moved[:, None] & where & _checksums(l4, proto)
    # That of IPv4's header is always valid.
    lost[:, 10:12] &= six[:, None]
    four = ~six & (now["caplen"] >= 20)
    packet[four, 10:12] = _ip_checksums(packet[four], l4[four])
    lost &= np.minimum(now["caplen"], NFT_PACKET_LEN)[:, None] > _COLUMN
    caplen = np.where(lost.any(axis=1), lost.argmax(axis=1), now["caplen"])
    # Without its length, a packet would seem to be as long as the rest of it.
    caplen = np.where(lost.any(axis=1) & (caplen < 6), 0, caplen)
    packet[caplen[:, None] <= _COLUMN] = 0
    return packet, caplen


def _byte_sets(masks: Array, l4: Array, proto: Array) -> Array:
    """Sets of bytes, uint64 (n,), to bool, shape (n, NFT_PACKET_LEN)."""
    bits = (masks[:, None] >> _COLUMN.astype(np.uint64)) & np.uint64(1) != 0
    found: Array = bits.copy()
    found[:, NFT_NET_LEN:] = False
    at = _COLUMN - l4[:, None]
    inside = (at >= 0) & (at < NFT_PACKET_LEN - TRANSPORT)
    found |= inside & np.take_along_axis(bits, np.where(inside, at + TRANSPORT, 0), axis=1)
    sums = masks & np.uint64(CHECKSUM) != 0
    found |= sums[:, None] & _checksums(l4, proto)
    everything = masks & np.uint64(ALL) == np.uint64(ALL)
    found |= everything[:, None]
    return found


def _checksums(l4: Array, proto: Array) -> Array:
    """The bytes of the transport checksum: bool, shape (n, NFT_PACKET_LEN)."""
    offset = _CHECKSUM_AT[proto]
    at = np.where(offset < 0, 2 * NFT_PACKET_LEN, l4 + offset)[:, None]
    found: Array = (at == _COLUMN) | (at + 1 == _COLUMN)
    return found


def _endpoints(six: Array, l4: Array) -> Array:
    """The bytes that NAT may change: addresses, and ports or an identifier."""
    addresses = np.where(
        six[:, None], (_COLUMN >= 8) & (_COLUMN < 40), (_COLUMN >= 12) & (_COLUMN < 20)
    )
    found: Array = addresses | (l4[:, None] <= _COLUMN) & (l4[:, None] + 6 > _COLUMN)
    return found


def _ip_checksums(packets: Array, l4: Array) -> Array:
    """The checksums of IPv4 headers: uint8, shape (n, 2)."""
    header = np.where(l4[:, None] > _COLUMN, packets, 0).astype(np.uint8)
    header[:, 10:12] = 0
    total = header.view(">u2").sum(axis=1, dtype=np.uint32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    found: Array = (~total & 0xFFFF).astype(">u2").view(np.uint8).reshape(-1, 2)
    return found
