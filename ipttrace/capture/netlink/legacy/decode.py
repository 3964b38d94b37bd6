# SPDX-License-Identifier: GPL-2.0-only
"""Rules that legacy iptables logs of a traced packet: NFULNL_MSG_PACKET to events.

nf_log_trace() sends each rule, return and policy through the namespace's logger;
where that is nfnetlink_log (see logger.py), it comes to group 0, one message a
datagram: for these the kernel takes a queue threshold of 1, whatever is asked for.
Layout: linux/netfilter/nfnetlink_log.h and nfnetlink_conntrack.h.  Must not change
what logger the namespace has, and must not loop over messages' attributes in Python.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import time
from pathlib import Path
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.attributes import NFGEN, NLMSG_HEADER, Array, Attributes, attributes
from ipttrace.capture.netlink.reader import Batch, Mailbox, joined
from ipttrace.stream.record import MATCHES

WIDTH: Final = 1024  # of a mailbox: no message of 128 bytes of packet comes near it
PACKET_LEN: Final = 128
NO_TRACE: Final = 255  # comment of a message that is none of nf_log_trace()'s

_GROUP: Final = 0
_SUBSYSTEM: Final = 4  # NFNL_SUBSYS_ULOG
_MSG_PACKET: Final = 0
_MSG_CONFIG: Final = 1
_NLMSG_ERROR: Final = 2
_REQUEST_ACK: Final = 0x05  # NLM_F_REQUEST | NLM_F_ACK

# enum nfulnl_attr_config, and values of it
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 5, 6
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_F_SEQ: Final = 0x01
_F_CONNTRACK: Final = 0x04

# enum nfulnl_attr_type
_HDR, _MARK, _INDEV, _OUTDEV = 1, 2, 4, 5
_PAYLOAD, _PREFIX, _SEQ, _HWHEADER, _CT, _CT_INFO = 9, 10, 12, 16, 18, 19
_TYPES: Final = 20

# enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto
_CTA_ORIG, _CTA_REPLY, _CTA_STATUS, _CTA_MARK, _CTA_ID, _CTA_ZONE = 1, 2, 3, 8, 12, 18
_CTA_TYPES: Final = 19
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE, _TUPLE_TYPES = 1, 2, 3, 4
_IP_TYPES: Final = 5  # v4 source 1, destination 2; v6 source 3, destination 4
_NUM, _SPORT, _DPORT, _ICMP, _ICMPV6, _PROTO_TYPES = 1, 2, 3, 4, 7, 10

_MAC_LEN: Final = 16
_PREFIX_LEN: Final = 128  # NF_LOG_PREFIXLEN
# No name of a table has a colon; a chain's may.
_LINE: Final = re.compile(
    rb"TRACE: ([^:]{1,32}):(.{1,32}):(rule|return|policy):([0-9]{1,10}) \Z", re.DOTALL
)
_MOST_LINES: Final = 1 << 16

EVENT: Final = np.dtype(
    [
        ("time", "u8"),  # CLOCK_MONOTONIC, ns: when it was read
        ("ct", "u8"),  # the connection's id in nfnetlink_conntrack; 0: none
        ("seq", "u4"),  # of the message, counted by the kernel for this socket
        ("rulenum", "u4"),
        ("in_ifindex", "u4"),
        ("out_ifindex", "u4"),
        ("mark", "u4"),
        ("len", "u4"),  # from the network header on; 0: not known
        ("ct_status", "u4"),
        ("ct_mark", "u4"),
        ("ct_zone", "u2"),
        ("ct_orig_sport", "u2"),  # as in the kernel: of ICMP the id, and type << 8 | code
        ("ct_orig_dport", "u2"),
        ("ct_reply_sport", "u2"),
        ("ct_reply_dport", "u2"),
        ("protocol", "u2"),  # ethertype
        ("caplen", "u2"),
        ("comment", "u1"),  # index into record.MATCHES, or NO_TRACE
        ("family", "u1"),  # NFPROTO
        ("hook", "u1"),
        ("tracked", "?"),  # the ct fields hold something
        ("ct_info", "u1"),
        ("ct_proto", "u1"),
        ("mac_len", "u1"),
        ("mac", "u1", (_MAC_LEN,)),
        ("ct_orig_src", "u1", (16,)),
        ("ct_orig_dst", "u1", (16,)),
        ("ct_reply_src", "u1", (16,)),
        ("ct_reply_dst", "u1", (16,)),
        ("table", "S32"),
        ("chain", "S32"),
        ("packet", "u1", (PACKET_LEN,)),
    ]
)

_LINE_FIELDS: Final = ("table", "chain", "comment", "rulenum")
_PARSED: Final = np.dtype(
    [("table", "S32"), ("chain", "S32"), ("comment", "u1"), ("rulenum", "u4")]
)


def open(mailbox: Mailbox) -> bool:
    """Group 0 of the mailbox's namespace sends to it, until the mailbox is closed.

    Returns whether messages tell of conntrack: not every kernel is built so
    (CONFIG_NETFILTER_NETLINK_GLUE_CT).

    To be called by a thread inside that namespace, before a Reader has the mailbox and
    before LogSetting.take().  Raises CaptureError.
    """
    flags = _F_SEQ | _F_CONNTRACK
    for _ in range(4):
        number = _configure(mailbox, flags)
        if number == 0:
            return bool(flags & _F_CONNTRACK)
        if number == errno.EAGAIN:
            continue  # the kernel has just loaded what the flags need
        if number == errno.EOPNOTSUPP and flags & _F_CONNTRACK:
            flags &= ~_F_CONNTRACK
            continue
        break
    raise CaptureError(_refusal(number))


def _configure(mailbox: Mailbox, flags: int) -> int:
    """Binds to the group, all in one: the errno, 0 if done."""
    command = b"".join(
        (
            _attribute(_CFG_CMD, struct.pack("B", _CMD_BIND)),
            _attribute(_CFG_MODE, struct.pack("!IBB", PACKET_LEN, _COPY_PACKET, 0)),
            _attribute(_CFG_QTHRESH, struct.pack("!I", 1)),
            _attribute(_CFG_FLAGS, struct.pack("!H", flags)),
        )
    )
    kind = _SUBSYSTEM << 8 | _MSG_CONFIG
    head = struct.pack("=IHHII", NFGEN + len(command), kind, _REQUEST_ACK, flags, 0)
    mailbox.socket.sendto(head + struct.pack("!BBH", 0, 0, _GROUP) + command, (0, 0))
    while True:
        # The answer is there when the kernel returns from the request.
        try:
            said = mailbox.socket.recv(mailbox.width)
        except BlockingIOError:
            return errno.ENOBUFS
        if len(said) < NLMSG_HEADER + 4:
            continue
        _, kind, _, number = struct.unpack_from("=IHHI", said)
        if kind == _NLMSG_ERROR and number == flags:
            return -int(struct.unpack_from("=i", said, NLMSG_HEADER)[0])
        # A rule's own NFLOG may be as quick.
        room = np.frombuffer(said + bytes(-len(said) % 4), np.uint8)[None].copy()
        mailbox.put(Batch(time.monotonic_ns(), room, np.array([len(said)], np.int32)))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _refusal(number: int) -> str:
    holder = _holder()
    if number in (errno.EPERM, errno.EBUSY) and holder is not None:
        return (
            f"{holder} reads NFLOG group 0 of this network namespace, so legacy rules are not "
            "traced: stop it, or have it read another group"
        )
    if number == errno.EPERM:
        return (
            "legacy rules are not traced: to read NFLOG group 0 needs CAP_NET_ADMIN in this "
            "network namespace (sudo ipttrace)"
        )
    if number in (errno.EINVAL, errno.ENOENT):
        return (
            "this kernel has no nfnetlink_log, so legacy rules are not traced "
            "(modprobe nfnetlink_log)"
        )
    return f"legacy rules are not traced: NFLOG group 0 cannot be read: {os.strerror(number)}"


def _holder() -> str | None:
    """Who has group 0 of the thread's namespace."""
    try:
        text = Path("/proc/thread-self/net/netfilter/nfnetlink_log").read_text("ascii")
    except (OSError, ValueError):
        return None
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == str(_GROUP):
            return f"another program ({_program(words[1])})"
    return None


def _program(portid: str) -> str:
    # A program's first netlink socket has its process id for an address, as a rule.
    if portid.isdigit():
        try:
            comm = Path("/proc", portid, "comm").read_text("utf-8", "backslashreplace").strip()
        except OSError:
            pass
        else:
            return f"process {portid}, {comm if comm.isprintable() else ascii(comm)}"
    return f"netlink port {portid}"


class Decoder:
    """The messages of one socket, in order."""

    def __init__(self) -> None:
        self.unread = 0  # messages that were none of ours, or not readable
        self._known: dict[bytes, int] = {}
        self._parsed = np.zeros(64, _PARSED)

    def decode(self, *batches: Batch) -> Array:
        """The events of these messages, shape (n,) of EVENT, in order.

        What is not a packet of group 0 is left out and counted in `unread`.  Many small
        batches at once cost a third of one after the other.
        """
        if not batches:
            return np.zeros(0, EVENT)
        batch, times = joined(batches)
        if not len(batch.lengths) or batch.data.shape[1] < NFGEN:
            self.unread += len(batch.lengths)
            return np.zeros(0, EVENT)
        kinds = batch.data[:, 4:6].copy().view(np.uint16)[:, 0]
        groups = batch.data[:, 18:20].copy().view(">u2")[:, 0]
        good = (kinds == _SUBSYSTEM << 8 | _MSG_PACKET) & (groups == _GROUP)
        good &= batch.lengths >= NFGEN
        which = np.flatnonzero(good)
        self.unread += len(kinds) - len(which)
        if not len(which):
            return np.zeros(0, EVENT)
        data = batch.data if len(which) == len(kinds) else batch.data[which]
        said = data[:, :4].copy().view(np.uint32)[:, 0]
        ends = np.minimum(batch.lengths[which], said)
        of = attributes(data, ends, NFGEN, _TYPES)
        events = np.zeros(len(which), EVENT)
        events["time"] = times[which]
        events["family"] = data[:, NLMSG_HEADER]
        events["seq"] = of.integer(_SEQ, ">u4")
        events["mark"] = of.integer(_MARK, ">u4")
        events["in_ifindex"] = of.integer(_INDEV, ">u4")
        events["out_ifindex"] = of.integer(_OUTDEV, ">u4")
        head = of.bytes(_HDR, 4)
        events["protocol"] = head[:, :2].copy().view(">u2")[:, 0]
        events["hook"] = head[:, 2]
        events["mac"] = of.bytes(_HWHEADER, _MAC_LEN)
        sizes = of.size[_HWHEADER]
        events["mac_len"] = np.where(sizes <= _MAC_LEN, sizes, 0)
        events["packet"] = of.bytes(_PAYLOAD, PACKET_LEN)
        events["caplen"] = np.minimum(of.size[_PAYLOAD], PACKET_LEN)
        events["len"] = _lengths(events)
        self._lines(events, of)
        _conntrack(events, of)
        return events

    def _lines(self, events: Array, of: Attributes) -> None:
        """Table, chain, comment and rule, as the prefixes say."""
        longest = int(of.size[_PREFIX].max(initial=1))
        width = min((max(longest, 1) + 7) & ~7, _PREFIX_LEN)
        lines = of.bytes(_PREFIX, width).view(f"S{width}")[:, 0].tolist()
        numbers = list(map(self._known.get, lines))
        if None in numbers:
            if len(self._known) > _MOST_LINES:
                self._known.clear()
            numbers = [self._number(line) for line in lines]
        parsed = self._parsed[np.array(numbers)]
        for name in _LINE_FIELDS:
            events[name] = parsed[name]

    def _number(self, line: bytes) -> int:
        number = self._known.get(line)
        if number is None:
            number = self._known[line] = len(self._known)
            if number == len(self._parsed):
                self._parsed = np.concatenate([self._parsed, np.zeros(number, _PARSED)])
            self._parsed[number] = parse(line)
        return number


def parse(line: bytes) -> tuple[bytes, bytes, int, int]:
    """Table, chain, comment (index into MATCHES) and rule of a line of nf_log_trace().

    Any other line has the comment NO_TRACE.
    """
    found = _LINE.match(line.split(b"\0", 1)[0])
    if found is None or int(found[4]) > 0xFFFFFFFF:
        return b"", b"", NO_TRACE, 0
    return found[1], found[2], MATCHES.index(found[3].decode()), int(found[4])


def lost(before: int, events: Array) -> int:
    """How many messages are missing before these and among them.

    `before`: the number of the last message until now, -1 at the beginning: the kernel
    counts from 0, and begins again after 2**32.
    """
    if not len(events):
        return 0
    steps = np.diff(events["seq"], prepend=np.uint32(before & 0xFFFFFFFF))
    return int((steps - np.uint32(1)).sum(dtype=np.uint64))


def _lengths(events: Array) -> Array:
    """uint32, shape (n,): the packets' lengths, which a payload that is cut does not tell."""
    packet, caplen = events["packet"], events["caplen"].astype(np.uint32)
    version = packet[:, 0] >> 4
    words = packet[:, 2:6].copy().view(">u2").astype(np.uint32)
    told = np.where(version == 6, words[:, 1] + 40, words[:, 0])
    told[(version == 6) & (words[:, 1] == 0)] = 0
    # RFC 2675: the first header is hop-by-hop, its first option the length.
    jumbo = (version == 6) & (told == 0) & (packet[:, 6] == 0)
    jumbo &= (packet[:, 42] == 0xC2) & (packet[:, 43] == 4)
    if jumbo.any():
        size = packet[jumbo, 44:48].copy().view(">u4")[:, 0].astype(np.uint32)
        told[jumbo] = np.where(size < 1 << 31, size + np.uint32(40), 0)
    told[(version != 4) & (version != 6)] = 0
    return np.where(caplen < PACKET_LEN, caplen, np.where(told == 0, 0, np.maximum(told, caplen)))


def _conntrack(events: Array, of: Attributes) -> None:
    which = np.flatnonzero(of.has(_CT, 4))
    if not len(which):
        return
    data = of.data if len(which) == len(events) else of.data[which]
    ct = _nest(data, of.at[_CT, which], of.size[_CT, which], _CTA_TYPES)
    events["tracked"][which] = True
    events["ct_info"][which] = of.integer(_CT_INFO, ">u4")[which].astype(np.uint8)
    events["ct"][which] = ct.integer(_CTA_ID, ">u4")
    events["ct_status"][which] = ct.integer(_CTA_STATUS, ">u4")
    events["ct_mark"][which] = ct.integer(_CTA_MARK, ">u4")
    zone = ct.integer(_CTA_ZONE, ">u2")
    for way, kind in (("orig", _CTA_ORIG), ("reply", _CTA_REPLY)):
        tuples = _nest(data, ct.at[kind], ct.size[kind], _TUPLE_TYPES)
        zone = np.where(zone != 0, zone, tuples.integer(_TUPLE_ZONE, ">u2"))
        ip = _nest(data, tuples.at[_TUPLE_IP], tuples.size[_TUPLE_IP], _IP_TYPES)
        six = ip.has(3, 16)
        for end, v4 in (("src", 1), ("dst", 2)):
            address = np.where(six[:, None], ip.bytes(v4 + 2, 16), ip.bytes(v4, 16))
            address[~six, 4:] = 0
            events[f"ct_{way}_{end}"][which] = address
        proto = _nest(data, tuples.at[_TUPLE_PROTO], tuples.size[_TUPLE_PROTO], _PROTO_TYPES)
        sport, dport = proto.integer(_SPORT, ">u2"), proto.integer(_DPORT, ">u2")
        for icmp in (_ICMP, _ICMPV6):
            there = proto.has(icmp, 2)
            if there.any():
                kinds = proto.integer(icmp + 1, "u1").astype(np.uint16)
                codes = proto.integer(icmp + 2, "u1")
                sport = np.where(there, proto.integer(icmp, ">u2"), sport)
                dport = np.where(there, kinds << 8 | codes, dport)
        events[f"ct_{way}_sport"][which] = sport
        events[f"ct_{way}_dport"][which] = dport
        if way == "orig":
            events["ct_proto"][which] = proto.integer(_NUM, "u1")
    events["ct_zone"][which] = zone


def _nest(data: Array, at: Array, size: Array, types: int) -> Attributes:
    return attributes(data, at + size, at, types)


def new_mailbox(room: int) -> Mailbox:
    """A mailbox of the calling thread's namespace, as wide as the messages.  Raises OSError."""
    return Mailbox(room, WIDTH)
