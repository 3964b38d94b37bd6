# SPDX-License-Identifier: GPL-2.0-only
"""The rules of a namespace's legacy tables, and what they make of a logged event.

The kernel does not announce that a legacy table was replaced: its entries are read now
and then and compared, without counters.  Must not create a table: reading one that does
not exist would.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from ipttrace import rule_words
from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import (
    ACCEPT_OR_DROP,
    POLICY,
    RETURN,
    RULE,
    UNKNOWN_VERDICT,
    VERDICT_CONTINUE,
)
from ipttrace.netfilter import ACCEPT, DROP, IP_VERSIONS, QUEUE

VERSIONS: Final = (4, 6)  # of IP
# linux/netfilter_ipv4.h and netfilter_ipv6.h: by table, of nat by hook.
_PRIORITIES: Final = {b"raw": -300, b"mangle": -150, b"filter": 0, b"security": 50}
_NAT_PRIORITIES: Final = {0: -100, 1: 100, 3: -100, 4: 100}

# IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; IP6T_SO_* have the same numbers.
_GET_INFO: Final = 64
_GET_ENTRIES: Final = 65
_INFO: Final = struct.Struct("=32sI5I5III")
_NAME: Final = 32
_ENTRIES_HEAD: Final = 40  # struct ipt_get_entries: name, size, padding
# Offsets of next_offset (u16) and counters (16 bytes) in struct ipt_entry and struct
# ip6t_entry, of 64-bit kernels.
_NEXT: Final = {4: 90, 6: 142}
_COUNTERS: Final = {4: 96, 6: 152}
_COUNTERS_SIZE: Final = 16
_LEVELS: Final = {4: (socket.AF_INET, socket.SOL_IP), 6: (socket.AF_INET6, 41)}
_LARGEST: Final = 64 << 20
# Looking for changes takes a fifth of a processor, unless that made rows wait too long.
_REST: Final = 4
_LONGEST_REST: Final = 0.1  # s
_RETRY: Final = 10.0  # s, after rules could not be read
_TRIES: Final = 3

# What targets return (net/netfilter, net/ipv4/netfilter, net/ipv6/netfilter).  A target
# that continues may drop a packet as well: no event follows then, and the verdict is
# unknown (ECN, TCPMSS, TCPOPTSTRIP, of malformed packets; SNPT, DNPT, of addresses that
# cannot be mapped; DSCP, TOS, TTL, HL, without memory; SYNPROXY also steals packets).
# SNAT, DNAT and NETMAP find a tuple always, and drop only without memory for a helper.
_VERDICTS = {
    "ACCEPT": ACCEPT,
    "DROP": DROP,
    "REJECT": DROP,
    "QUEUE": QUEUE,
    "NFQUEUE": QUEUE,
    "DNAT": ACCEPT,
    "SNAT": ACCEPT,
    "NETMAP": ACCEPT,
    "MASQUERADE": ACCEPT_OR_DROP,  # without an address for the device
    "REDIRECT": ACCEPT_OR_DROP,  # likewise
    "TPROXY": ACCEPT_OR_DROP,  # without a listener
}
"""Targets to verdicts: NF_*, VERDICT_CONTINUE or ACCEPT_OR_DROP."""
_VERDICTS |= dict.fromkeys(
    (
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DNPT", "DSCP", "ECN"),
        *("HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST"),
        *("SECMARK", "SET", "SNPT", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE"),
        *("TTL", "ULOG"),
    ),
    VERDICT_CONTINUE,
)
# Targets that leave a packet's mark alone.
_KEEP_MARK: Final = _VERDICTS.keys() - {"CONNMARK", "HMARK", "MARK", "SET", "TPROXY"} | {"RETURN"}

_MOVING: Final = frozenset({"DNPT", "SNPT"})

_libc = ctypes.CDLL(None, use_errno=True)

_Key = tuple[int, str]  # IP version, table


class _Blob:
    """A table's entries, uint8 (n,), counters zeroed, and where each begins, int64 (m,)."""

    __slots__ = ("data", "starts")

    def __init__(self, data: Array, starts: Array) -> None:
        self.data = data
        self.starts = starts

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Blob) and np.array_equal(self.data, other.data))


_NONE: Final = _Blob(np.zeros(0, np.uint8), np.zeros(0, np.int64))


class LegacyRules:
    """The legacy tables of one namespace; methods are for the thread inside the namespace."""

    def __init__(self) -> None:
        """Of the calling thread's namespace.  Raises OSError."""
        self.tables: dict[_Key, Table] = {}  # the newest that could be read
        self.earlier: dict[_Key, Table] = {}  # before the newest change
        self.changed = 0  # when the newest change was seen, CLOCK_MONOTONIC ns
        self.checked = 0  # when the kernel's tables were last compared
        self.failed = ""  # why the rules are unknown, for a message
        # Does a rule in the last chain that packets meet end with ACCEPT or DROP?
        self.may_drop_last = False
        self._blobs: dict[_Key, _Blob] = {}  # entries at the last check
        self._spent = 0.0  # s that the current check has spent on commands
        self._due = 0.0
        self._retry_at = dict.fromkeys(VERSIONS, 0.0)  # after a failure
        self._unread: set[int] = set()  # IP versions that changed before _retry_at
        self._sockets: dict[int, socket.socket] = {}
        for family in VERSIONS:
            with contextlib.suppress(OSError):
                self._sockets[family] = socket.socket(
                    _LEVELS[family][0], socket.SOCK_RAW, socket.IPPROTO_RAW
                )
        if not self._sockets:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def close(self) -> None:
        """Closes the sockets, which hold the namespace."""
        for sock in self._sockets.values():
            sock.close()

    @staticmethod
    def existing() -> set[int]:
        """The IP versions that have tables in the calling thread's namespace."""
        return {family for family in VERSIONS if iptables_save.names(family)}

    def check(self, *, force: bool = False) -> set[int] | None:
        """The IP versions whose rules changed since the last check; None if it is not due.

        `force`: checks even if it is not due.
        """
        begun = time.monotonic()
        if not force and begun < self._due:
            return None
        moment = time.monotonic_ns()
        self._spent = 0.0
        changed: set[int] = set()
        for family in self._sockets:
            if self._update(family):
                changed.add(family)
        if changed:
            self.changed = time.monotonic_ns()
        self.checked = moment
        looked = time.monotonic() - begun - self._spent
        self._due = time.monotonic() + min(_REST * looked, _LONGEST_REST)
        return changed

    def _update(self, family: int) -> bool:
        """Reads the rules of one IP version if they changed; returns whether they did."""
        before = {key: blob for key, blob in self._blobs.items() if key[0] == family}
        now = self._read_blobs(family)
        due = time.monotonic() >= self._retry_at[family]
        if now == before and not (due and family in self._unread):
            return False
        self._unread.discard(family)
        if not due:
            self._unread.add(family)
        for _ in range(_TRIES):
            reading = time.monotonic()
            try:
                tables = iptables_save.read(family) if due else {}
                self.failed = "" if due else self.failed
            except (CommandMissing, CaptureError, Unreadable, OSError) as error:
                self.failed = str(error)
                # Rows wait for each check: a failing command must not delay every one.
                self._retry_at[family] = time.monotonic() + _RETRY
                tables = {}
            self._spent += time.monotonic() - reading
            after = self._read_blobs(family)
            if after == now:
                break
            now = after
        else:
            tables = {}
        for key in before:
            del self._blobs[key]
        self._blobs.update(now)
        self.earlier = self.tables
        self.may_drop_last |= any(
            "MASQUERADE" in rule for chain in tables.get("nat", {}).values() for rule in chain.rules
        )
        self.tables = {key: table for key, table in self.tables.items() if key[0] != family} | {
            (family, name): table for name, table in tables.items()
        }
        return True

    def _read_blobs(self, family: int) -> dict[_Key, _Blob]:
        names = iptables_save.names(family)
        return {(family, name): self._read_blob(family, name) for name in names}

    def _read_blob(self, family: int, table: str) -> _Blob:
        """The table's entries in the kernel; none if they cannot be read."""
        level = _LEVELS[family][1]
        fd = self._sockets[family].fileno()
        name = table.encode()[: _NAME - 1]
        for _ in range(_TRIES):
            info = ctypes.create_string_buffer(_INFO.pack(name, *[0] * 13), _INFO.size)
            if not _get(fd, level, _GET_INFO, info, _INFO.size):
                return _NONE
            size = _INFO.unpack(info.raw)[-1]
            if size > _LARGEST:
                return _NONE
            head = struct.pack("=32sI4x", name, size)
            room = ctypes.create_string_buffer(head, _ENTRIES_HEAD + size)
            if _get(fd, level, _GET_ENTRIES, room, _ENTRIES_HEAD + size):
                data = np.frombuffer(memoryview(room), np.uint8)[_ENTRIES_HEAD:]
                return _blob(data, family, self._blobs.get((family, table), _NONE))
        return _NONE


def _get(fd: int, level: int, option: int, buffer: Any, size: int) -> bool:
    """getsockopt(2) with a buffer that is also read, which Python's socket does not offer."""
    length = ctypes.c_uint32(size)
    return bool(_libc.getsockopt(fd, level, option, buffer, ctypes.byref(length)) == 0)


def _blob(data: Array, family: int, before: _Blob) -> _Blob:
    """The entries in `data`, uint8 (n,), whose counters are set to 0.

    `before`: the newest known; it is returned if nothing but counters differs.
    """
    if len(data) == len(before.data):
        # Counters are where they were if the rest, which has the entries' lengths, is the same.
        same = data.copy()
        same[_counters(before.starts, family)] = 0
        if np.array_equal(same, before.data):
            return before
    starts = []
    at, end = 0, _COUNTERS[family] + _COUNTERS_SIZE
    lengths = data.tobytes()
    while at + end <= len(data):
        starts.append(at)
        (after,) = struct.unpack_from("=H", lengths, at + _NEXT[family])
        if after < _COUNTERS[family]:
            break
        at += after
    found = _Blob(data, np.array(starts, np.int64))
    data[_counters(found.starts, family)] = 0
    return found


def _counters(starts: Array, family: int) -> Array:
    """The indices of the counters of entries at `starts`, int64 (n, 16)."""
    return starts[:, None] + np.arange(_COUNTERS[family], _COUNTERS[family] + _COUNTERS_SIZE)


def priorities(tables: Sequence[bytes], index: Array, hooks: Array) -> Array:
    """The priorities of tables' chains at hooks, int64, shape (n,); 0 for unknown tables.

    `index`: into `tables`, shape (n,); `hooks`: NF_INET_*, shape (n,).
    """
    pairs = index.astype(np.int64) << 8 | hooks.astype(np.int64)
    unique, inverse = np.unique(pairs, return_inverse=True)
    found = [_priority(tables[pair >> 8], pair & 0xFF) for pair in unique.tolist()]
    return np.array(found, np.int64)[inverse]


def _priority(table: bytes, hook: int) -> int:
    return _NAT_PRIORITIES.get(hook, 0) if table == b"nat" else _PRIORITIES.get(table, 0)


class Outcome(NamedTuple):
    """`match`: index into record.MATCHES.

    `verdict`: NF_*, VERDICT_CONTINUE, ACCEPT_OR_DROP, UNKNOWN_VERDICT; `moves`: the target
    gives the packet other addresses and continues.
    """

    match: int
    verdict: int
    moves: bool = False


def may_set_marks(tables: dict[_Key, Table]) -> bool:
    """Whether a rule in `tables` may change a packet's mark."""
    return any(
        found is not None and found[1] not in _KEEP_MARK and found[1] not in table
        for table in tables.values()
        for chain in table.values()
        for found in map(rule_words.target, chain.rules)
    )


def outcome(
    tables: dict[_Key, Table], family: int, table: str, chain: str, match: int, number: int
) -> Outcome:
    """What a logged event means by the rules in `tables`.

    `family`: NFPROTO_*; `match`: as logged.  The kernel logs every unconditional verdict
    as a policy or a return, `-j RETURN` too: an event with the number of a rule is a hit
    of that rule.
    """
    rules = tables.get((IP_VERSIONS.get(family, 0), table), {}).get(chain)
    is_rule = rules is not None and 0 < number <= len(rules.rules)
    if rules is None or not is_rule:
        if match == RETURN:
            return Outcome(match, VERDICT_CONTINUE)
        if match == POLICY and rules is not None and rules.policy is not None:
            return Outcome(match, _VERDICTS.get(rules.policy, UNKNOWN_VERDICT))
        return Outcome(match, UNKNOWN_VERDICT)
    found = rule_words.target(rules.rules[number - 1])
    if found is None:
        return Outcome(RULE, VERDICT_CONTINUE)
    option, target = found
    if option == "g" or target == "RETURN" or target in tables[IP_VERSIONS[family], table]:
        return Outcome(RULE, VERDICT_CONTINUE)
    return Outcome(RULE, _VERDICTS.get(target, UNKNOWN_VERDICT), target in _MOVING)
