# SPDX-License-Identifier: GPL-2.0-only
"""What decoding, journeys and calls share: event dtypes, chains by number, unique numbers.

An event is one rule hit, return, end of chain or policy that the kernel reported about
one packet.  Decoders fill events in, journeys say which packet they are of, and calls
turn them into records.  Must not do I/O, and must not import a decoder.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.netfilter import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, UNKNOWN_HOOK
from ipttrace.stream import record

TABLE_PREFIX: Final = b"ipttrace-"  # of nft tables that flip, made by any ipttrace process
PASSED: Final = b"passed"
"""The chain of such a table that packets reach which no other chain dropped."""

# Kinds of events: the first three are those of rule records; nftables has no RETURN.
RULE: Final = record.MATCH_RULE
RETURN: Final = record.MATCH_RETURN
POLICY: Final = record.MATCH_POLICY
CHAIN_END: Final = 3  # the end of a chain was reached, without a verdict

# Verdicts besides NF_*.
VERDICT_CONTINUE: Final = -1  # the table goes on with the next rule
UNKNOWN_VERDICT: Final = 0xFF
# The table ends with ACCEPT or DROP: if the packet meets a later chain, it was ACCEPT.
ACCEPT_OR_DROP: Final = 0xFE

NFT_PACKET_LEN: Final = 60  # bytes of the packet in nftables' trace messages
NFT_NET_LEN: Final = 40  # of them, from the network header: NFT_TRACETYPE_NETWORK_HSIZE
# IPv6 extension headers, by IPPROTO_*: the transport header does not follow the first 40 bytes.
IPV6_EXTENSIONS: Final = np.isin(np.arange(256), [0, 43, 44, 51, 60, 135, 139, 140])
LEGACY_PACKET_LEN: Final = 128  # bytes of the packet in nfnetlink_log's messages

EVENT: Final = np.dtype(
    [
        ("time", "u8"),  # CLOCK_MONOTONIC, ns, when the message was read
        ("journey", "u8"),  # 0: not assigned
        ("handle", "u8"),  # of the rule; 0: none
        ("id", "u4"),  # nftables' number of the packet
        ("chain", "u4"),  # see ChainRegistry
        ("generation", "u4"),  # of the ruleset, the kernel's number
        ("rulenum", "u4"),  # 0: unknown
        ("ruleset", "u4"),  # the stream's number of the generation; 0: unknown
        ("mark", "u4"),  # after the rule; of legacy tables before it
        ("mark_before", "u4"),  # before the rule, if mark_known
        ("mark_known", "?"),
        ("iif", "u4"),
        ("oif", "u4"),
        ("priority", "i4"),  # of the chain at its hook
        ("verdict", "i4"),
        ("ct", "u4"),  # the connection's id, from here to ct_flags: see record.ENTRY_DTYPE
        ("ct_status", "u4"),
        ("ct_info", "u1"),
        ("ct_flags", "u1"),
        ("tracking", "u1"),  # IP versions that conntrack is sure to see: TRACKING
        ("hook", "u1"),
        ("kind", "u1"),  # RULE, RETURN, POLICY or CHAIN_END
        ("head", "?"),  # the first event of a call
        ("last", "?"),  # it ends the call
        ("family", "u1"),  # NFPROTO_* of the packet
        ("mac_len", "u1"),
        ("caplen", "u1"),
        ("mac", "u1", (16,)),
        ("packet", "u1", (NFT_PACKET_LEN,)),
    ]
)
"""An event of nftables' trace."""

NO_EVENTS: Final = np.zeros(0, EVENT)

# Fields of an entry record that only legacy events have.
LEGACY_FIELDS: Final = (
    *("ct", "len", "ct_status", "ct_mark", "ct_zone", "ct_orig_sport", "ct_orig_dport"),
    *("ct_reply_sport", "ct_reply_dport", "ct_info", "ct_proto", "ct_orig_src", "ct_orig_dst"),
    *("ct_reply_src", "ct_reply_dst", "flags", "physin_ifindex", "physout_ifindex"),
)
# And those that nftables' events have.
NFT_FIELDS: Final = ("ct", "ct_status", "ct_info", "ct_flags")

TRACKING: Final[dict[int, int]] = {NFPROTO_IPV4: 1, NFPROTO_IPV6: 2, NFPROTO_INET: 3}
"""Families of tables to bits of EVENT's `tracking`: 1 for IPv4, 2 for IPv6."""


def _legacy_dtype() -> np.dtype[Any]:
    native = record.ENTRY_DTYPE.newbyteorder("=")
    fields: list[Any] = [
        ("packet", "u1", (LEGACY_PACKET_LEN,))
        if name == "packet"
        else (name, EVENT[name].base, EVENT[name].shape)
        for name in EVENT.names or ()
        if name not in LEGACY_FIELDS
    ]
    fields += [(name, native[name].base, native[name].shape) for name in LEGACY_FIELDS]
    return np.dtype(fields)


LEGACY_EVENT: Final = _legacy_dtype()
"""An event of a legacy table: EVENT with a longer packet, and LEGACY_FIELDS."""


class UniqueNumbers:
    """Numbers of calls and journeys: none is given out twice."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def take(self, count: int) -> Array:
        """The next `count` numbers: uint64, shape (count,), ascending."""
        first = self._next
        self._next += count
        return np.arange(first, self._next, dtype=np.uint64)


class ChainKey(NamedTuple):
    """Identifies a chain: family of its table (NFPROTO_*, 0 for legacy), table, chain name."""

    family: int
    table: bytes
    chain: bytes


# Further chains share one number, and one name.
MOST_CHAINS: Final = 1 << 16
_OTHER_CHAIN: Final = ChainKey(0, b"?", b"?")


class ChainRegistry:
    """Chains by number, which is what events hold.  A chain is never removed."""

    def __init__(self) -> None:
        self.chains: list[ChainKey] = []
        self._numbers: dict[ChainKey, int] = {}

    def number(self, key: ChainKey) -> int:
        """The index into `chains`; an unknown one is added."""
        number = self._numbers.get(key)
        if number is None and len(self.chains) >= MOST_CHAINS:
            key = _OTHER_CHAIN
            number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.chains)
            self.chains.append(key)
        return number

    def numbers(self, families: Array, tables: Array, chains: Array) -> Array:
        """The indices into `chains`, uint32, shape (n,); unknown ones are added.

        `families`: shape (n,); `tables`, `chains`: names, uint8, shape (n, k), padded
        with zeros, k a multiple of 8.
        """
        count = len(families)
        words = np.concatenate([tables.view(np.uint64), chains.view(np.uint64)], axis=1)
        with np.errstate(over="ignore"):
            hashed = families.astype(np.uint64)
            for column in range(words.shape[1]):
                hashed = (hashed ^ words[:, column]) * np.uint64(0x9E3779B97F4A7C15)
                hashed ^= hashed >> np.uint64(29)
        _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
        numbers = np.zeros(len(first), np.uint32)
        for i, at in enumerate(first.tolist()):
            numbers[i] = self.number(
                ChainKey(
                    int(families[at]),
                    tables[at].tobytes().split(b"\0", 1)[0],
                    chains[at].tobytes().split(b"\0", 1)[0],
                )
            )
        return numbers[inverse] if count else np.zeros(0, np.uint32)


def packet_length(packets: Array, caplen: Array) -> Array:
    """The packets' lengths by their IP headers, at least `caplen`: uint32, shape (n,).

    `packets`: uint8, shape (n, k), from the network header on.  0: unknown, since the header
    is cut off or does not say (a jumbogram, GSO beyond 64 KiB).
    """
    high, low = packets[:, 2:6:2].astype(np.uint32), packets[:, 3:6:2].astype(np.uint32)
    words = high << 8 | low
    version = packets[:, 0] >> 4
    # The field of an empty IPv6 packet is 0 as well; the bytes show which it is.
    six = np.where((words[:, 1] == 0) & (caplen > 40), 0, words[:, 1] + 40)
    length = np.select([version == 4, version == 6], [words[:, 0], six], 0)
    # Other protocols' packets are reported whole, up to the size of a network header.
    other = (version != 4) & (version != 6) & (caplen < NFT_NET_LEN)
    length = np.where(other, caplen, length)
    told = (length != 0) & (other | (caplen >= np.where(version == 6, 6, 4)))
    found: Array = np.where(told, np.maximum(length, caplen), 0).astype(np.uint32)
    return found


def bases(hooks: Array, starts: Array) -> Array:
    """Of each call its first event in the base chain: int64, shape (m,).

    `hooks`: of the chains of events, shape (n,); `starts`: where each call begins, shape (m,).
    If it has none, its first event: packets may be marked in a chain that rules jump to.
    """
    count = len(hooks)
    at = np.where(hooks != UNKNOWN_HOOK, np.arange(count), count)
    found: Array = np.minimum.reduceat(at, starts) if len(starts) else starts
    return np.asarray(np.where(found < count, found, starts))
