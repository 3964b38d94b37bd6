# SPDX-License-Identifier: GPL-2.0-only
"""The legacy tables of a namespace, as they are now, for the netlink engine.

Nobody tells when a legacy table is replaced: what the kernel has is compared with
what it had, counters left out, now and then.  What the rules say is read as
ruleset_save does.  Must not make a table that was not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
import time
from typing import Any, Final, NamedTuple

from ipttrace.capture import iptables_save as ruleset_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.netlink.calls import UNTOLD
from ipttrace.netfilter import IP_VERSIONS

FAMILIES: Final = (4, 6)
# include/uapi/linux/netfilter_ipv4.h, the same for IPv6; priorities by table, nat's by hook.
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT: Final = {0: -100, 1: 100, 3: -100, 4: 100}

# IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES and IPv6's, which have the same numbers.
_GET_INFO: Final = 64
_GET_ENTRIES: Final = 65
_INFO: Final = struct.Struct("=32sI5I5III")
_NAME: Final = 32
_ENTRIES_HEAD: Final = 40  # struct ipt_get_entries: name, size, and its alignment
# Where an entry has its next_offset (u16) and its counters (16 bytes): struct ipt_entry,
# struct ip6t_entry on 64-bit kernels.
_NEXT: Final = {4: 90, 6: 142}
_COUNTERS: Final = {4: 96, 6: 152}
_COUNTERS_SIZE: Final = 16
_LEVELS: Final = {4: (socket.AF_INET, socket.SOL_IP), 6: (socket.AF_INET6, 41)}
_LARGEST: Final = 64 << 20
# Looking costs a fifth of a processor at most.
_SHARE: Final = 4
_AGAIN: Final = 10.0  # s, after a failure
_TRIES: Final = 3

_RULE, _RETURN, _POLICY = range(3)  # of record.MATCHES
_ACCEPT: Final = 1
_DROP: Final = 0
_QUEUE: Final = 3
_TARGETS = {
    "ACCEPT": _ACCEPT,
    "DROP": _DROP,
    "REJECT": _DROP,
    "QUEUE": _QUEUE,
    "NFQUEUE": _QUEUE,
    "DNAT": _ACCEPT,
    "SNAT": _ACCEPT,
    "MASQUERADE": _ACCEPT,
    "REDIRECT": _ACCEPT,
    "NETMAP": _ACCEPT,
    "TPROXY": _ACCEPT,
}
GO_ON: Final = -1
# What the packet goes on from, to the next rule; iptables-extensions(8).
_TARGETS |= dict.fromkeys(
    (
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "HL"),
        *("HMARK", "IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST", "SECMARK"),
        *("SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL", "ULOG"),
    ),
    GO_ON,
)
# What stands in quotes may look like anything.
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)')
_TARGET: Final = re.compile(r"(?:^|\s)-([jg])\s+(\S+)")

_libc = ctypes.CDLL(None, use_errno=True)

_Key = tuple[int, str]  # 4 or 6, table


class LegacyRules:
    """All but the constructor and `tables` is for the thread that is inside the namespace."""

    def __init__(self) -> None:
        """In the calling thread's namespace.  Raises OSError."""
        self.tables: dict[_Key, Table] = {}  # as they are, as far as it is known
        self.earlier: dict[_Key, Table] = {}  # before the newest change
        self.changed = 0  # when a change was seen last, CLOCK_MONOTONIC ns
        self.checked = 0  # when it was last looked whether there was one
        self.failed = ""  # why the rules are not known, for a person
        self._before: dict[_Key, bytes] = {}
        self._due = 0.0
        self._read_due = dict.fromkeys(FAMILIES, 0.0)  # after a failure
        self._unread: set[int] = set()  # families that changed before that
        self._sockets: dict[int, socket.socket] = {}
        for family in FAMILIES:
            with contextlib.suppress(OSError):
                self._sockets[family] = socket.socket(
                    _LEVELS[family][0], socket.SOCK_RAW, socket.IPPROTO_RAW
                )
        if not self._sockets:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def close(self) -> None:
        """Lets go of the namespace."""
        for sock in self._sockets.values():
            sock.close()

    @staticmethod
    def there() -> set[int]:
        """The families, 4 and 6, that have tables in the thread's namespace."""
        return {family for family in FAMILIES if ruleset_save.names(family)}

    def look(self, *, now: bool = False) -> set[int] | None:
        """The families whose rules are others than at the last look; None: it was not time.

        `now`: whatever it costs.
        """
        begun = time.monotonic()
        if not now and begun < self._due:
            return None
        moment = time.monotonic_ns()
        changed: set[int] = set()
        for family in self._sockets:
            if self._look(family):
                changed.add(family)
        if changed:
            self.changed = time.monotonic_ns()
        self.checked = moment
        self._due = max(self._due, time.monotonic() + _SHARE * (time.monotonic() - begun))
        return changed

    def _look(self, family: int) -> bool:
        """Reads the family's rules where they have changed."""
        before = {key: blob for key, blob in self._before.items() if key[0] == family}
        now = self._blobs(family)
        due = time.monotonic() >= self._read_due[family]
        if now == before and not (due and family in self._unread):
            return False
        self._unread.discard(family)
        if not due:
            self._unread.add(family)
        for _ in range(_TRIES):
            try:
                tables = ruleset_save.read(family) if due else {}
                self.failed = "" if due else self.failed
            except (CommandMissing, CaptureError, Unreadable, OSError) as error:
                self.failed = str(error)
                # Rows wait for each look, so that it must not be what comes later.
                self._read_due[family] = time.monotonic() + _AGAIN
                tables = {}
            after = self._blobs(family)
            if after == now:
                break
            now = after
        else:
            tables = {}
        for key in [key for key in self._before if key[0] == family]:
            del self._before[key]
        self._before.update(now)
        self.earlier = self.tables
        self.tables = {key: table for key, table in self.tables.items() if key[0] != family} | {
            (family, name): table for name, table in tables.items()
        }
        return True

    def _blobs(self, family: int) -> dict[_Key, bytes]:
        return {(family, name): self._blob(family, name) for name in ruleset_save.names(family)}

    def _blob(self, family: int, table: str) -> bytes:
        """The table's entries as the kernel has them, without their counters."""
        level = _LEVELS[family][1]
        fd = self._sockets[family].fileno()
        name = table.encode()[: _NAME - 1]
        for _ in range(_TRIES):
            info = ctypes.create_string_buffer(_INFO.pack(name, *[0] * 13), _INFO.size)
            if not _get(fd, level, _GET_INFO, info, _INFO.size):
                return b""
            size = _INFO.unpack(info.raw)[-1]
            if size > _LARGEST:
                return b""
            head = struct.pack("=32sI4x", name, size)
            room = ctypes.create_string_buffer(head, _ENTRIES_HEAD + size)
            if _get(fd, level, _GET_ENTRIES, room, _ENTRIES_HEAD + size):
                return _without_counters(room.raw[_ENTRIES_HEAD:], family)
        return b""


def _get(fd: int, level: int, option: int, buffer: Any, size: int) -> bool:
    length = ctypes.c_uint32(size)
    return bool(_libc.getsockopt(fd, level, option, buffer, ctypes.byref(length)) == 0)


def _without_counters(blob: bytes, family: int) -> bytes:
    data = bytearray(blob)
    at, counters = 0, _COUNTERS[family]
    zeros = bytes(_COUNTERS_SIZE)
    while at + counters + _COUNTERS_SIZE <= len(data):
        data[at + counters : at + counters + _COUNTERS_SIZE] = zeros
        (after,) = struct.unpack_from("=H", data, at + _NEXT[family])
        if after < counters:
            break
        at += after
    return bytes(data)


def priority(table: str, hook: int) -> int:
    """Of a table's chain at a hook."""
    return _NAT.get(hook, 0) if table == "nat" else _PRIORITIES.get(table, 0)


class Meaning(NamedTuple):
    """`match`: index into record.MATCHES; `verdict`: NF_*, GO_ON or UNTOLD."""

    match: int
    verdict: int


def meaning(
    tables: dict[_Key, Table], family: int, table: str, chain: str, match: int, number: int
) -> Meaning:
    """What a line that was logged means, as the rules say, and only so.

    `family`: NFPROTO.  The kernel calls any unconditional verdict a policy or a return:
    what has a rule's number is that rule.
    """
    rules = tables.get((IP_VERSIONS.get(family, 0), table), {}).get(chain)
    is_rule = rules is not None and 0 < number <= len(rules.rules)
    if rules is None or not is_rule:
        if match == _RETURN:
            return Meaning(match, GO_ON)
        if match == _POLICY and rules is not None and rules.policy is not None:
            return Meaning(match, _TARGETS.get(rules.policy, UNTOLD))
        return Meaning(match, UNTOLD)
    found = _TARGET.search(_QUOTED.sub('""', rules.rules[number - 1]))
    if found is None:
        return Meaning(_RULE, GO_ON)
    how, target = found.groups()
    if target == "RETURN":
        return Meaning(match if match == _RETURN else _RULE, GO_ON)
    if how == "g" or target in tables[IP_VERSIONS[family], table]:
        return Meaning(_RULE, GO_ON)
    return Meaning(_RULE, _TARGETS.get(target, UNTOLD))
