# SPDX-License-Identifier: GPL-2.0-only
"""Binds a socket to nfnetlink_log, and decodes what legacy tables log of traced packets.

The kernel's nf_log_trace() passes each rule hit, return and policy to the namespace's
logger.  If that is nfnetlink_log (see logger.py), it sends NFULNL_MSG_PACKET to group 0,
one message a datagram.  Layout: linux/netfilter/nfnetlink_log.h, nfnetlink_conntrack.h.
Must not change the namespace's logger, and must not loop over attributes in Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import time
from pathlib import Path
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink import conntrack
from ipttrace.capture.netlink.attributes import NFGEN, NLMSG_HEADER, Array, Attributes, attributes
from ipttrace.capture.netlink.events import LEGACY_PACKET_LEN
from ipttrace.capture.netlink.reader import Batch, Mailbox, joined
from ipttrace.stream.record import MATCHES

WIDTH: Final = 1024  # of a mailbox: more than any message with LEGACY_PACKET_LEN bytes needs
NOT_TRACE: Final = 255  # `match` of a message that nf_log_trace() did not write

_GROUP: Final = 0
_SUBSYSTEM: Final = 4  # NFNL_SUBSYS_ULOG
_MSG_PACKET: Final = 0
_MSG_CONFIG: Final = 1
_NLMSG_ERROR: Final = 2
_REQUEST: Final = 0x01  # NLM_F_REQUEST
_REQUEST_ACK: Final = 0x05  # NLM_F_REQUEST | NLM_F_ACK

# enum nfulnl_attr_config, and values of it
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 5, 6
_CMD_BIND: Final = 1
_CMD_UNBIND: Final = 2
_COPY_PACKET: Final = 2
_F_SEQ: Final = 0x01
_F_CONNTRACK: Final = 0x04

# enum nfulnl_attr_type
_HDR, _MARK, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV = 1, 2, 4, 5, 6, 7
_PAYLOAD, _PREFIX, _SEQ, _HWHEADER, _CT, _CT_INFO = 9, 10, 12, 16, 18, 19
_TYPES: Final = 20

_MAC_LEN: Final = 16
_PREFIX_LEN: Final = 128  # NF_LOG_PREFIXLEN
# Names of chains may contain colons, those of tables do not.
_TRACE_PREFIX: Final = re.compile(
    rb"TRACE: ([^:]{1,32}):(.{1,32}):(rule|return|policy):([0-9]{1,10}) \Z", re.DOTALL
)
_MOST_PREFIXES: Final = 1 << 16

LOG_MESSAGE: Final = np.dtype(
    [
        ("time", "u8"),  # CLOCK_MONOTONIC, ns, when it was read
        ("ct", "u8"),  # the connection's id in nfnetlink_conntrack; 0: none
        ("seq", "u4"),  # the kernel's number of the message, for this socket
        ("rulenum", "u4"),
        ("in_ifindex", "u4"),
        ("out_ifindex", "u4"),
        ("physin_ifindex", "u4"),  # ports of the bridge, of a bridged packet
        ("physout_ifindex", "u4"),
        ("mark", "u4"),
        ("len", "u4"),  # of the packet, from the network header on; 0: unknown
        ("ct_status", "u4"),
        ("ct_mark", "u4"),
        ("ct_zone", "u2"),
        ("ct_orig_sport", "u2"),  # of ICMP: sport is the id, dport is type << 8 | code
        ("ct_orig_dport", "u2"),
        ("ct_reply_sport", "u2"),
        ("ct_reply_dport", "u2"),
        ("protocol", "u2"),  # ethertype
        ("caplen", "u2"),
        ("match", "u1"),  # index into record.MATCHES, or NOT_TRACE
        ("family", "u1"),  # NFPROTO_*
        ("hook", "u1"),
        ("tracked", "?"),  # the message has conntrack's attributes
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
        ("packet", "u1", (LEGACY_PACKET_LEN,)),
    ]
)

_PREFIX_FIELDS: Final = np.dtype(
    [("table", "S32"), ("chain", "S32"), ("match", "u1"), ("rulenum", "u4")]
)


def new_mailbox(room: int) -> Mailbox:
    """A mailbox of the calling thread's namespace, wide enough for messages.  Raises OSError."""
    return Mailbox(room, WIDTH)


def bind(mailbox: Mailbox) -> bool:
    """Makes group 0 of the mailbox's namespace send to it, until it is closed.

    Returns whether messages have conntrack's attributes, which needs a kernel with
    CONFIG_NETFILTER_NETLINK_GLUE_CT.

    For a thread inside that namespace, while no MailboxReader reads the mailbox, and before
    LogSetting.take().  Raises CaptureError.
    """
    flags = _F_SEQ | _F_CONNTRACK
    for _ in range(4):
        number = _configure(mailbox, flags)
        if number == 0:
            return bool(flags & _F_CONNTRACK)
        if number == errno.EAGAIN:
            continue  # the kernel has just loaded a module that the flags need
        if number == errno.EOPNOTSUPP and flags & _F_CONNTRACK:
            flags &= ~_F_CONNTRACK
            continue
        break
    raise CaptureError(_refusal(number))


def unbind(mailbox: Mailbox) -> None:
    """Undoes `bind`; does nothing if the mailbox is closed."""
    kind = _SUBSYSTEM << 8 | _MSG_CONFIG
    command = _attribute(_CFG_CMD, struct.pack("B", _CMD_UNBIND))
    head = struct.pack("=IHHII", NFGEN + len(command), kind, _REQUEST, 0, 0)
    with contextlib.suppress(OSError):
        mailbox.socket.sendto(head + struct.pack("!BBH", 0, 0, _GROUP) + command, (0, 0))


def _configure(mailbox: Mailbox, flags: int) -> int:
    """Binds to the group and configures it in one message.  Returns the errno, 0 on success."""
    command = b"".join(
        (
            _attribute(_CFG_CMD, struct.pack("B", _CMD_BIND)),
            _attribute(_CFG_MODE, struct.pack("!IBB", LEGACY_PACKET_LEN, _COPY_PACKET, 0)),
            _attribute(_CFG_QTHRESH, struct.pack("!I", 1)),
            _attribute(_CFG_FLAGS, struct.pack("!H", flags)),
        )
    )
    kind = _SUBSYSTEM << 8 | _MSG_CONFIG
    head = struct.pack("=IHHII", NFGEN + len(command), kind, _REQUEST_ACK, flags, 0)
    mailbox.socket.sendto(head + struct.pack("!BBH", 0, 0, _GROUP) + command, (0, 0))
    while True:
        # The kernel answers before sendto() returns.
        try:
            answer = mailbox.socket.recv(mailbox.width)
        except BlockingIOError:
            return errno.ENOBUFS
        if len(answer) < NLMSG_HEADER + 4:
            continue
        _, kind, _, number = struct.unpack_from("=IHHI", answer)
        if kind == _NLMSG_ERROR and number == flags:
            return -int(struct.unpack_from("=i", answer, NLMSG_HEADER)[0])
        # A packet that an NFLOG rule logged meanwhile.
        data = np.frombuffer(answer + bytes(-len(answer) % 4), np.uint8)[None].copy()
        mailbox.put(Batch(time.monotonic_ns(), data, np.array([len(answer)], np.int32)))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _refusal(number: int) -> str:
    holder = _holder()
    if number in (errno.EPERM, errno.EBUSY) and holder is not None:
        return (
            f"{holder} reads NFLOG group 0 of this network namespace: stop it, or have it read "
            "another group"
        )
    if number == errno.EPERM:
        return "reading NFLOG group 0 needs CAP_NET_ADMIN in this network namespace (sudo ipttrace)"
    if number in (errno.EINVAL, errno.ENOENT):
        return "this kernel has no nfnetlink_log (modprobe nfnetlink_log)"
    return f"NFLOG group 0 cannot be read: {os.strerror(number)}"


def _holder() -> str | None:
    """The program that has group 0 of the thread's namespace, None if unknown."""
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
    # A program's first netlink socket usually has the process id as its address.
    if portid.isdigit():
        try:
            comm = Path("/proc", portid, "comm").read_text("utf-8", "backslashreplace").strip()
        except OSError:
            pass
        else:
            return f"process {portid}, {comm if comm.isprintable() else ascii(comm)}"
    return f"netlink port {portid}"


class NflogDecoder:
    """Decodes the messages of one socket, which must be passed in order."""

    def __init__(self) -> None:
        self.unread = 0  # messages other than packets of group 0
        self._numbers: dict[bytes, int] = {}  # prefix → index into _parsed
        self._parsed = np.zeros(64, _PREFIX_FIELDS)

    def decode(self, *batches: Batch) -> Array:
        """The packets of group 0 in these messages, in order: LOG_MESSAGE, shape (n,).

        Other messages are counted in `unread`.  Many small batches in one call cost a
        third of a call for each.
        """
        if not batches:
            return np.zeros(0, LOG_MESSAGE)
        batch, times = joined(batches)
        if not len(batch.lengths) or batch.data.shape[1] < NFGEN:
            self.unread += len(batch.lengths)
            return np.zeros(0, LOG_MESSAGE)
        kinds = batch.data[:, 4:6].copy().view(np.uint16)[:, 0]
        groups = batch.data[:, 18:20].copy().view(">u2")[:, 0]
        good = (kinds == _SUBSYSTEM << 8 | _MSG_PACKET) & (groups == _GROUP)
        good &= batch.lengths >= NFGEN
        which = np.flatnonzero(good)
        self.unread += len(kinds) - len(which)
        if not len(which):
            return np.zeros(0, LOG_MESSAGE)
        data = batch.data if len(which) == len(kinds) else batch.data[which]
        claimed = data[:, :4].copy().view(np.uint32)[:, 0]
        ends = np.minimum(batch.lengths[which], claimed)
        of = attributes(data, ends, NFGEN, _TYPES)
        events = np.zeros(len(which), LOG_MESSAGE)
        events["time"] = times[which]
        events["family"] = data[:, NLMSG_HEADER]
        events["seq"] = of.integer(_SEQ, ">u4")
        events["mark"] = of.integer(_MARK, ">u4")
        events["in_ifindex"] = of.integer(_INDEV, ">u4")
        events["out_ifindex"] = of.integer(_OUTDEV, ">u4")
        events["physin_ifindex"] = of.integer(_PHYSINDEV, ">u4")
        events["physout_ifindex"] = of.integer(_PHYSOUTDEV, ">u4")
        head = of.bytes(_HDR, 4)
        events["protocol"] = head[:, :2].copy().view(">u2")[:, 0]
        events["hook"] = head[:, 2]
        events["mac"] = of.bytes(_HWHEADER, _MAC_LEN)
        sizes = of.size[_HWHEADER]
        events["mac_len"] = np.where(sizes <= _MAC_LEN, sizes, 0)
        events["packet"] = of.bytes(_PAYLOAD, LEGACY_PACKET_LEN)
        events["caplen"] = np.minimum(of.size[_PAYLOAD], LEGACY_PACKET_LEN)
        events["len"] = _lengths(events)
        self._fill_prefix(events, of)
        _fill_conntrack(events, of)
        return events

    def _fill_prefix(self, events: Array, of: Attributes) -> None:
        """Fills in `table`, `chain`, `match` and `rulenum` from the prefixes."""
        longest = int(of.size[_PREFIX].max(initial=1))
        width = min((max(longest, 1) + 7) & ~7, _PREFIX_LEN)
        prefixes = of.bytes(_PREFIX, width).view(f"S{width}")[:, 0].tolist()
        numbers = list(map(self._numbers.get, prefixes))
        if None in numbers:
            if len(self._numbers) > _MOST_PREFIXES:
                self._numbers.clear()
            numbers = [self._number(prefix) for prefix in prefixes]
        parsed = self._parsed[np.array(numbers)]
        for name in _PREFIX_FIELDS.names or ():
            events[name] = parsed[name]

    def _number(self, prefix: bytes) -> int:
        number = self._numbers.get(prefix)
        if number is None:
            number = self._numbers[prefix] = len(self._numbers)
            if number == len(self._parsed):
                self._parsed = np.concatenate([self._parsed, np.zeros(number, _PREFIX_FIELDS)])
            self._parsed[number] = parse_prefix(prefix)
        return number


def parse_prefix(prefix: bytes) -> tuple[bytes, bytes, int, int]:
    """Table, chain, match (index into MATCHES) and rule number, as nf_log_trace() writes them.

    Any other prefix has the match NOT_TRACE.
    """
    found = _TRACE_PREFIX.match(prefix.split(b"\0", 1)[0])
    if found is None or int(found[4]) > 0xFFFFFFFF:
        return b"", b"", NOT_TRACE, 0
    return found[1], found[2], MATCHES.index(found[3].decode()), int(found[4])


def missing(before: int, messages: Array) -> int:
    """The number of messages lost before and among `messages`, LOG_MESSAGE, shape (n,).

    `before`: `seq` of the previous message, -1 at the beginning: the kernel counts from 0
    and wraps at 2**32.
    """
    if not len(messages):
        return 0
    steps = np.diff(messages["seq"], prepend=np.uint32(before & 0xFFFFFFFF))
    return int((steps - np.uint32(1)).sum(dtype=np.uint64))


def _lengths(events: Array) -> Array:
    """The packets' lengths, by their headers if the payload was cut: uint32, shape (n,)."""
    packet, caplen = events["packet"], events["caplen"].astype(np.uint32)
    version = packet[:, 0] >> 4
    words = packet[:, 2:6].copy().view(">u2").astype(np.uint32)
    claimed = np.where(version == 6, words[:, 1] + 40, words[:, 0])
    claimed[(version == 6) & (words[:, 1] == 0)] = 0
    # RFC 2675: a jumbogram's length is an option of the hop-by-hop header.
    jumbo = (version == 6) & (claimed == 0) & (packet[:, 6] == 0)
    jumbo &= (packet[:, 42] == 0xC2) & (packet[:, 43] == 4)
    if jumbo.any():
        size = packet[jumbo, 44:48].copy().view(">u4")[:, 0].astype(np.uint32)
        claimed[jumbo] = np.where(size < 1 << 31, size + np.uint32(40), 0)
    claimed[(version != 4) & (version != 6)] = 0
    lengths = np.where(claimed == 0, 0, np.maximum(claimed, caplen))
    return np.where(caplen < LEGACY_PACKET_LEN, caplen, lengths)


def _fill_conntrack(events: Array, of: Attributes) -> None:
    which = np.flatnonzero(of.has(_CT, 4))
    if not len(which):
        return
    events["tracked"][which] = True
    events["ct_info"][which] = of.integer(_CT_INFO, ">u4")[which].astype(np.uint8)
    data = of.data if len(which) == len(events) else of.data[which]
    conntrack.fill(events, which, data, of.at[_CT, which], of.size[_CT, which])
