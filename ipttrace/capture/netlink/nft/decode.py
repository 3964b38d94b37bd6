# SPDX-License-Identifier: GPL-2.0-only
"""NFT_MSG_TRACE messages to events, many at once.

nftables sends one message for each rule that a traced packet meets, for the end
of each chain of a user's, and for a base chain's policy (nf_tables_trace.c).  The
first message of a run through a base chain has the packet's headers.  Must not do
I/O, and must not loop over messages in Python.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import NFGEN, NLMSG_HEADER, Array, Attributes, attributes
from ipttrace.capture.netlink.reader import Batch, joined

NFNLGRP_NFTABLES: Final = 7
NFNLGRP_NFTRACE: Final = 9

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_MSG_NEWGEN: Final = 15
_MSG_TRACE: Final = 17

# enum nft_trace_attributes
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _LL, _NET, _TRANSPORT = range(1, 10)
_IIF, _OIF, _MARK, _NFPROTO, _POLICY = 10, 12, 14, 15, 16
_TYPES: Final = 17
_GEN_ID: Final = 1  # NFTA_GEN_ID
_VERDICT_CODE: Final = 1  # NFTA_VERDICT_CODE

# enum nft_trace_types
_OF_POLICY: Final = 1

VERDICT_CONTINUE: Final = -1
VERDICT_RETURN: Final = -5

# What an event is: the first three are record.MATCHES.
RULE: Final = 0
RETURN: Final = 1
POLICY: Final = 2
PASSED: Final = 3  # the end of a chain, without a verdict

_NET_LEN: Final = 40  # NFT_TRACETYPE_NETWORK_HSIZE
_TRANSPORT_LEN: Final = 20
# ns: between them is room for the lines that legacy tables log of the packet.
APART: Final = np.uint64(64)
PACKET_LEN: Final = _NET_LEN + _TRANSPORT_LEN

EVENT: Final = np.dtype(
    [
        ("time", "u8"),  # CLOCK_MONOTONIC, ns: when it was read
        ("journey", "u8"),  # 0: not known yet
        ("handle", "u8"),  # of the rule; 0: none
        ("id", "u4"),  # of the packet, nftables' own
        ("place", "u4"),  # see Places
        ("generation", "u4"),  # of the ruleset, the kernel's number
        ("rulenum", "u4"),
        ("ruleset", "u4"),  # generation of the stream; 0: not known
        ("mark", "u4"),
        ("iif", "u4"),
        ("oif", "u4"),
        ("priority", "i4"),  # of the chain at its hook
        ("verdict", "i4"),
        ("hook", "u1"),
        ("kind", "u1"),
        ("head", "?"),  # the first of a run through a base chain
        ("last", "?"),  # the run is over
        ("unsure", "?"),  # rules may just have been replaced
        ("family", "u1"),  # NFPROTO of the packet
        ("mac_len", "u1"),
        ("caplen", "u1"),
        ("mac", "u1", (16,)),
        ("packet", "u1", (PACKET_LEN,)),
    ]
)

# Headers that a transport header follows at once; what NFTA_TRACE_TRANSPORT_HEADER is.
_EXTENSIONS: Final = np.array([0, 43, 44, 51, 60, 135, 139, 140])


class Place(NamedTuple):
    """A chain: family of its table (NFPROTO), table and name, as they are."""

    family: int
    table: bytes
    chain: bytes


# Chains that are told apart; who makes more has not all of them named.
MOST_PLACES: Final = 1 << 16
_ANOTHER: Final = Place(0, b"?", b"?")


class Places:
    """Chains by number, as events have them.  What `all` has, it keeps."""

    def __init__(self) -> None:
        self.all: list[Place] = []
        self._numbers: dict[Place, int] = {}

    def numbers(self, families: Array, tables: Array, chains: Array) -> Array:
        """uint32, shape (n,).  `tables`, `chains`: uint8 of shape (n, k), k a multiple of 8."""
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
            place = Place(
                int(families[at]),
                tables[at].tobytes().split(b"\0", 1)[0],
                chains[at].tobytes().split(b"\0", 1)[0],
            )
            number = self._numbers.get(place)
            if number is None and len(self.all) >= MOST_PLACES:
                place = _ANOTHER
                number = self._numbers.get(place)
            if number is None:
                number = self._numbers[place] = len(self.all)
                self.all.append(place)
            numbers[i] = number
        return numbers[inverse] if count else np.zeros(0, np.uint32)


class Decoder:
    """The messages of one socket, in order."""

    def __init__(self, generation: int) -> None:
        """`generation`: that of the ruleset before the first message."""
        self.places = Places()
        self.generation = generation
        self.unread = 0  # messages that were none of ours, or not readable
        # Of each change: the ruleset's generation since, and when it was first told of, ns.
        self.changes: list[tuple[int, int]] = []
        self._begun = 0  # when the messages of a change began to come

    def decode(self, *batches: Batch) -> Array:
        """The events of these messages, shape (n,) of EVENT, in order.

        Many small batches at once cost a third of one after the other.
        """
        if not batches:
            return np.zeros(0, EVENT)
        batch, times = joined(batches)
        if batch.data.shape[1] < NFGEN:
            self.unread += len(batch.lengths)
            return np.zeros(0, EVENT)
        kinds = batch.data[:, 4:6].copy().view(np.uint16)[:, 0]
        kinds[batch.lengths < NFGEN] = 0
        generations = self._generations(batch, kinds, times)
        which = np.flatnonzero(kinds == _SUBSYSTEM << 8 | _MSG_TRACE)
        self.unread += int((kinds >> 8 != _SUBSYSTEM).sum())
        if not len(which):
            return np.zeros(0, EVENT)
        data = batch.data if len(which) == len(kinds) else batch.data[which]
        lengths = batch.lengths[which]
        of = attributes(data, lengths, NFGEN, _TYPES)
        verdicts = _verdicts(of)
        good = _whole(of, verdicts)
        if not good.all():
            self.unread += int((~good).sum())
            which, data, lengths = which[good], data[good], lengths[good]
            if not len(which):
                return np.zeros(0, EVENT)
            of = attributes(data, lengths, NFGEN, _TYPES)
            verdicts = _verdicts(of)
        events = np.zeros(len(which), EVENT)
        # Those that were read at one time a little apart, so that their order stays.
        first = np.append(True, times[1:] != times[:-1])
        begins = np.maximum.accumulate(np.where(first, np.arange(len(times)), 0))
        apart = (np.arange(len(times)) - begins).astype(np.uint64) * APART
        events["time"] = (times + apart)[which]
        events["generation"] = generations[which]
        events["id"] = of.integer(_ID, ">u4")
        events["handle"] = of.integer(_HANDLE, ">u8")
        events["mark"] = of.integer(_MARK, ">u4")
        events["iif"] = of.integer(_IIF, ">u4")
        events["oif"] = of.integer(_OIF, ">u4")
        events["family"] = of.integer(_NFPROTO, ">u4").astype(np.uint8)
        width = int(max(of.size[_TABLE].max(initial=0), of.size[_CHAIN].max(initial=0), 1))
        width = (width + 7) & ~7
        events["place"] = self.places.numbers(
            data[:, NLMSG_HEADER], of.bytes(_TABLE, width), of.bytes(_CHAIN, width)
        )
        _judge(events, of, verdicts)
        _headers(events, of)
        return events

    def _generations(self, batch: Batch, kinds: Array, times: Array) -> Array:
        """uint32, shape (n,): the ruleset's generation at each message."""
        found = np.full(len(kinds), self.generation, np.uint32)
        told = np.flatnonzero((kinds >> 8 == _SUBSYSTEM) & (kinds & 0xFF != _MSG_TRACE))
        for at in told.tolist():
            self._begun = self._begun or int(times[at])
            if kinds[at] & 0xFF != _MSG_NEWGEN:
                continue
            row = batch.data[at : at + 1]
            of = attributes(row, batch.lengths[at : at + 1], NFGEN, 2)
            if of.has(_GEN_ID, 4)[0]:
                self.generation = int(of.integer(_GEN_ID, ">u4")[0])
                self.changes.append((self.generation, self._begun))
                found[at:] = self.generation
            self._begun = 0
        return found


def _verdicts(of: Attributes) -> Attributes:
    """The attributes inside of the verdict's."""
    return attributes(of.data, of.at[_VERDICT] + of.size[_VERDICT], of.at[_VERDICT], 2)


def _whole(of: Attributes, verdicts: Attributes) -> Array:
    """bool, shape (n,): is there what every message has, and the verdict?"""
    policy = of.integer(_TYPE, ">u4") == _OF_POLICY
    verdict = np.where(policy, of.has(_POLICY, 4), verdicts.has(_VERDICT_CODE, 4))
    good: Array = of.has(_TABLE) & of.has(_CHAIN) & of.has(_ID, 4) & of.has(_TYPE, 4) & verdict
    return good


def _judge(events: Array, of: Attributes, verdicts: Attributes) -> None:
    """Kind, verdict and whether the run ends with it."""
    code = verdicts.integer(_VERDICT_CODE, ">i4")
    policy = of.integer(_TYPE, ">u4") == _OF_POLICY
    ruled = of.has(_HANDLE, 8)
    events["verdict"] = np.where(policy, of.integer(_POLICY, ">u4").astype(np.int32), code)
    events["last"] = policy | (code >= 0)
    events["kind"] = np.select(
        [policy, ruled & (code == VERDICT_RETURN), ruled], [POLICY, RETURN, RULE], PASSED
    )


def _headers(events: Array, of: Attributes) -> None:
    """The packet, where the message has it: network and transport header, and the link's."""
    # Of IPv6's later fragments the kernel does not know where the transport header is:
    # it tells of no network header, and of the packet's first bytes as the transport's.
    which = np.flatnonzero(of.has(_NET, 1) | of.has(_TRANSPORT, 1))
    if not len(which):
        return
    some = Attributes(of.data[which], of.at[:, which], of.size[:, which])
    net_len = np.minimum(some.size[_NET], _NET_LEN)
    transport_len = np.minimum(some.size[_TRANSPORT], _TRANSPORT_LEN)
    packet = np.zeros((len(which), PACKET_LEN), np.uint8)
    packet[:, :_NET_LEN] = some.bytes(_NET, _NET_LEN)
    # Extension headers that did not fit stand between the two: then what was
    # told of the transport header has no place.
    six = packet[:, 0] >> 4 == 6
    transport_len[six & np.isin(packet[:, 6], _EXTENSIONS)] = 0
    transport_len[~six & ((packet[:, 0] & 15) * 4 > _NET_LEN)] = 0
    transport = some.bytes(_TRANSPORT, _TRANSPORT_LEN)
    for length in np.unique(net_len).tolist():
        rows = net_len == length
        packet[rows, length : length + _TRANSPORT_LEN] = transport[rows]
    caplen = net_len + transport_len
    packet[np.arange(PACKET_LEN) >= caplen[:, None]] = 0
    events["packet"][which] = packet
    events["caplen"][which] = caplen
    events["head"][which] = True
    events["mac"][which] = some.bytes(_LL, 16)
    events["mac_len"][which] = np.where(some.size[_LL] <= 16, some.size[_LL], 0)
