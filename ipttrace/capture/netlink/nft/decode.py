# SPDX-License-Identifier: GPL-2.0-only
"""Decodes NFT_MSG_TRACE messages to events (netlink.events.EVENT), many at once.

nftables sends a message for each rule that a traced packet hits, for the end of each
chain that is not a base chain, and for a base chain's policy (net/netfilter/
nf_tables_trace.c).  The first message of a call has the packet's headers.  Layout:
linux/netfilter/nf_tables.h.  Must not do I/O, and must not loop over messages in Python.
"""

from __future__ import annotations

import platform
from typing import Final

import numpy as np

from ipttrace.capture.netlink import conntrack
from ipttrace.capture.netlink.attributes import NFGEN, NLMSG_HEADER, Array, Attributes, attributes
from ipttrace.capture.netlink.conntrack import REPLY, TEMPLATE, UNTRACKED
from ipttrace.capture.netlink.events import (
    CHAIN_END,
    EVENT,
    IPV6_EXTENSIONS,
    NFT_NET_LEN,
    NFT_PACKET_LEN,
    POLICY,
    RULE,
    TRACKING,
    ChainRegistry,
)
from ipttrace.capture.netlink.reader import Batch, joined
from ipttrace.netfilter import HOOKS, IP_HOOKS, IP_VERSIONS
from ipttrace.stream import record

NFNLGRP_NFTABLES: Final = 7
NFNLGRP_NFTRACE: Final = 9

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_OTHERS: Final = 4  # NFNL_SUBSYS_ULOG, on the same socket, see netlink.legacy.decode
_MSG_NEWGEN: Final = 15
_MSG_TRACE: Final = 17

# enum nft_trace_attributes
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _LL, _NET, _TRANSPORT = range(1, 10)
_IIF, _OIF, _MARK, _NFPROTO, _POLICY = 10, 12, 14, 15, 16
_CT_ID, _CT_DIRECTION, _CT_STATUS, _CT_STATE = 18, 19, 20, 21  # from Linux 6.16 on
_TYPES: Final = 22
_GEN_ID: Final = 1  # NFTA_GEN_ID
_VERDICT_CODE: Final = 1  # NFTA_VERDICT_CODE

# enum nft_trace_types
_OF_POLICY: Final = 1

# NFTA_TRACE_CT_STATE to enum ip_conntrack_info, of the original direction: NF_CT_STATE_BIT
# and NF_CT_STATE_UNTRACKED_BIT (nf_conntrack_common.h).
_CT_INFO: Final = {0x02: 0, 0x04: 1, 0x08: 2, 0x40: UNTRACKED}

_CT_UNCLEAR: Final = 0xFF
_PRI_CONNTRACK: Final = -200  # NF_IP_PRI_CONNTRACK
_PREROUTING, _OUTPUT = HOOKS.index("PREROUTING"), HOOKS.index("OUTPUT")

_TRANSPORT_LEN: Final = NFT_PACKET_LEN - NFT_NET_LEN  # NFT_TRACETYPE_TRANSPORT_HSIZE


class NftTraceDecoder:
    """Decodes the messages of one socket, which must be passed in order."""

    def __init__(self, generation: int) -> None:
        """`generation`: of the ruleset before the first message, the kernel's number."""
        self.chains = ChainRegistry()
        self.generation = generation
        self.unread = 0  # messages of unknown subsystems, or malformed
        self.reports_conntrack = conntrack.is_reported(platform.release())
        # Of each change: the new generation, and when its first message was read, ns.
        self.changes: list[tuple[int, int]] = []
        self._change_begun = 0  # when the first message of an unfinished change was read

    def decode(self, *batches: Batch) -> Array:
        """The events of these messages, in order: EVENT, shape (n,).

        Many small batches in one call cost a third of a call for each.
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
        self.unread += int((~np.isin(kinds >> 8, (_SUBSYSTEM, _OTHERS))).sum())
        if not len(which):
            return np.zeros(0, EVENT)
        data = batch.data if len(which) == len(kinds) else batch.data[which]
        lengths = batch.lengths[which]
        of = attributes(data, lengths, NFGEN, _TYPES)
        verdicts = _verdicts(of)
        good = _complete(of, verdicts)
        if not good.all():
            self.unread += int((~good).sum())
            which, data, lengths = which[good], data[good], lengths[good]
            if not len(which):
                return np.zeros(0, EVENT)
            of = attributes(data, lengths, NFGEN, _TYPES)
            verdicts = _verdicts(of)
        events = np.zeros(len(which), EVENT)
        events["time"] = times[which]
        events["generation"] = generations[which]
        events["id"] = of.integer(_ID, ">u4")
        events["handle"] = of.integer(_HANDLE, ">u8")
        events["mark"] = of.integer(_MARK, ">u4")
        events["iif"] = of.integer(_IIF, ">u4")
        events["oif"] = of.integer(_OIF, ">u4")
        events["family"] = of.integer(_NFPROTO, ">u4").astype(np.uint8)
        width = int(max(of.size[_TABLE].max(initial=0), of.size[_CHAIN].max(initial=0), 1))
        width = (width + 7) & ~7
        events["chain"] = self.chains.numbers(
            data[:, NLMSG_HEADER], of.bytes(_TABLE, width), of.bytes(_CHAIN, width)
        )
        _fill_kinds(events, of, verdicts)
        _fill_headers(events, of)
        self.reports_conntrack |= _fill_conntrack(events, of)
        # The state may be in the part of a message that there was no room for.
        cut = data[:, :4].copy().view(np.uint32)[:, 0] > lengths
        if cut.any():
            events["ct_info"][cut & (events["ct_flags"] == 0)] = _CT_UNCLEAR
        return events

    def mark_invalid(self, events: Array) -> None:
        """Sets CT_INVALID where conntrack has seen the packet and the kernel reports no state.

        `events`: EVENT, located.  The kernel reports none for a packet without an entry, be
        it invalid or not yet seen by conntrack, but UNTRACKED if it is.
        """
        if not self.reports_conntrack or not events["tracking"].any():
            return
        families = [events["family"] == family for family in IP_VERSIONS]
        version = np.select(families, [TRACKING[family] for family in IP_VERSIONS])
        invalid = events["head"] & (events["tracking"] & version != 0)
        invalid &= (events["ct_info"] == 0) & (events["ct_flags"] == 0)
        at_first = np.isin(events["hook"], (_PREROUTING, _OUTPUT))
        seen = ~at_first | (events["priority"] > _PRI_CONNTRACK)
        events["ct_flags"][invalid & seen & (events["hook"] < len(IP_HOOKS))] = record.CT_INVALID

    def _generations(self, batch: Batch, kinds: Array, times: Array) -> Array:
        """The ruleset's generation at each message: uint32, shape (n,)."""
        found = np.full(len(kinds), self.generation, np.uint32)
        changes = np.flatnonzero((kinds >> 8 == _SUBSYSTEM) & (kinds & 0xFF != _MSG_TRACE))
        for at in changes.tolist():
            self._change_begun = self._change_begun or int(times[at])
            if kinds[at] & 0xFF != _MSG_NEWGEN:
                continue
            row = batch.data[at : at + 1]
            of = attributes(row, batch.lengths[at : at + 1], NFGEN, 2)
            if of.has(_GEN_ID, 4)[0]:
                self.generation = int(of.integer(_GEN_ID, ">u4")[0])
                self.changes.append((self.generation, self._change_begun))
                found[at:] = self.generation
            self._change_begun = 0
        return found


def _verdicts(of: Attributes) -> Attributes:
    """The attributes inside NFTA_TRACE_VERDICT."""
    return attributes(of.data, of.at[_VERDICT] + of.size[_VERDICT], of.at[_VERDICT], 2)


def _complete(of: Attributes, verdicts: Attributes) -> Array:
    """Whether each message has the attributes that all must have: bool, shape (n,)."""
    policy = of.integer(_TYPE, ">u4") == _OF_POLICY
    verdict = np.where(policy, of.has(_POLICY, 4), verdicts.has(_VERDICT_CODE, 4))
    good: Array = of.has(_TABLE) & of.has(_CHAIN) & of.has(_ID, 4) & of.has(_TYPE, 4) & verdict
    return good


def _fill_kinds(events: Array, of: Attributes, verdicts: Attributes) -> None:
    """Fills in `kind`, `verdict` and `last`."""
    code = verdicts.integer(_VERDICT_CODE, ">i4")
    policy = of.integer(_TYPE, ">u4") == _OF_POLICY
    events["verdict"] = np.where(policy, of.integer(_POLICY, ">u4").astype(np.int32), code)
    events["last"] = policy | (code >= 0)
    events["kind"] = np.select([policy, of.has(_HANDLE, 8)], [POLICY, RULE], CHAIN_END)


def _fill_headers(events: Array, of: Attributes) -> None:
    """Fills in `packet`, `caplen`, `mac` and `head` from the messages that have headers."""
    # Of IPv6's later fragments the kernel cannot find the transport header: the message
    # has no network header, and the packet's first bytes as the transport header.
    which = np.flatnonzero(of.has(_NET, 1) | of.has(_TRANSPORT, 1))
    if not len(which):
        return
    some = Attributes(of.data[which], of.at[:, which], of.size[:, which])
    net_len = np.minimum(some.size[_NET], NFT_NET_LEN)
    transport_len = np.minimum(some.size[_TRANSPORT], _TRANSPORT_LEN)
    packet = np.zeros((len(which), NFT_PACKET_LEN), np.uint8)
    packet[:, :NFT_NET_LEN] = some.bytes(_NET, NFT_NET_LEN)
    # If extension headers or IPv4 options did not fit, the transport header's offset is
    # not known: it is dropped.
    six = packet[:, 0] >> 4 == 6
    transport_len[six & IPV6_EXTENSIONS[packet[:, 6]]] = 0
    transport_len[~six & ((packet[:, 0] & 15) * 4 > NFT_NET_LEN)] = 0
    transport = some.bytes(_TRANSPORT, _TRANSPORT_LEN)
    for length in np.unique(net_len).tolist():
        rows = net_len == length
        packet[rows, length : length + _TRANSPORT_LEN] = transport[rows]
    caplen = net_len + transport_len
    packet[np.arange(NFT_PACKET_LEN) >= caplen[:, None]] = 0
    events["packet"][which] = packet
    events["caplen"][which] = caplen
    events["head"][which] = True
    events["mac"][which] = some.bytes(_LL, 16)
    events["mac_len"][which] = np.where(some.size[_LL] <= 16, some.size[_LL], 0)


def _fill_conntrack(events: Array, of: Attributes) -> bool:
    """Fills in NFT_FIELDS from the messages that have conntrack's state; are there any?

    The kernel sends it with the headers (nf_trace_fill_ct_info()).
    """
    which = np.flatnonzero(of.has(_CT_STATE, 4))
    if not len(which):
        return False
    some = Attributes(of.data[which], of.at[:, which], of.size[:, which])
    state, status = some.integer(_CT_STATE, ">u4"), some.integer(_CT_STATUS, ">u4")
    info = np.zeros(len(which), np.uint8)
    known = np.zeros(len(which), bool)
    for bit, number in _CT_INFO.items():
        info[state == bit] = number
        known |= state == bit
    tracked = known & (info != UNTRACKED)
    # A template, which -j CT or ct zone set attaches, is of no connection.
    known &= ~tracked | (status & TEMPLATE == 0)
    tracked &= known
    info[tracked & (some.integer(_CT_DIRECTION, "u1") == 1)] += REPLY
    # Not 0, which would be none.
    events["ct_info"][which] = np.where(known, info, _CT_UNCLEAR)
    events["ct_flags"][which] = np.where(tracked, record.CT_STATE, 0)
    events["ct_status"][which] = np.where(tracked, status, 0)
    events["ct"][which] = np.where(tracked, some.integer(_CT_ID, ">u4"), 0)
    return True
