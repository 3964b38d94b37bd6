# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's files about reassembly and conntrack, as numbers.

Of the calling thread's namespace: /proc/thread-self/net, and /proc/sys/net, which shows
each reader its own.  What the kernel lacks is absent, never 0.  Must not enter
namespaces, or keep a file open.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Final

from ipttrace.capture.tables import counters

# Texts instead of Path objects, which cost more than reading the files.
_NET: Final = "/proc/thread-self/net"
_SYSCTL: Final = "/proc/sys/net"
_CONNTRACK: Final = "/proc/sys/net/netfilter/nf_conntrack_"
_MODULES: Final = "/proc/modules"
_NETLINK_NETFILTER: Final = 12
_MOST: Final = 1 << 20  # bytes of a file
_PORTION: Final = 1 << 14
_PATIENCE: Final = 5.0  # s; only against a hang

_LIMITS: Final = ("high_thresh", "low_thresh", "time", "max_dist")
# Where conntrack reassembles IPv6 packets itself.
_FRAG6: Final = ("high_thresh", "low_thresh", "timeout")
_REASM: Final = ("ReasmReqds", "ReasmOKs", "ReasmFails", "ReasmTimeout")
_QUEUES: Final = re.compile(rb"^FRAG6?: inuse (\d+) memory (\d+)$", re.MULTILINE)
_CONNTRACK_LIMITS: Final = ("count", "max", "buckets", "expect_max")
# Columns of /proc/net/stat/nf_conntrack: conntrack(8)'s names.  Others count nothing, or
# only expectations.
_COLUMNS: Final = {
    "found": "found",
    "invalid": "invalid",
    "insert": "insert",
    "insert_failed": "insert_failed",
    "drop": "drop",
    "early_drop": "early_drop",
    "icmp_error": "error",
    "search_restart": "search_restart",
    "clashres": "clash_resolve",
    "chainlength": "chaintoolong",
}

Values = dict[str, int]


def _bytes(path: str) -> bytes:
    """Returns what is in a file, at most _MOST bytes; b"" if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts: list[bytes] = []
    size = 0
    try:
        while size < _MOST and (part := os.read(fd, _PORTION)):
            parts.append(part)
            size += len(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def _number(path: str) -> int | None:
    text = _bytes(path).strip()
    return int(text) if text.isdigit() else None


def _add(values: Values, name: str, path: str) -> None:
    if (number := _number(path)) is not None:
        values[name] = number


def reassembly4() -> Values:
    """Returns limits, queues and counters of IPv4."""
    values: Values = {}
    for name in _LIMITS:
        _add(values, name, f"{_SYSCTL}/ipv4/ipfrag_{name}")
    _queues(values, f"{_NET}/sockstat")
    _named_columns(values, f"{_NET}/snmp", b"Ip:", _REASM)
    _named_columns(values, f"{_NET}/netstat", b"IpExt:", ("ReasmOverlaps",))
    return values


def reassembly6() -> Values:
    """Returns limits, queues and counters of IPv6."""
    values: Values = {}
    for name in _LIMITS[:3]:
        _add(values, name, f"{_SYSCTL}/ipv6/ip6frag_{name}")
    _queues(values, f"{_NET}/sockstat6")
    for line in _bytes(f"{_NET}/snmp6").split(b"\n"):
        name, _, number = line.decode("ascii", "replace").partition(" ")
        if name.startswith("Ip6Reasm") and number.strip().isdecimal():
            values[name.removeprefix("Ip6")] = int(number)
    if values:
        for name in _FRAG6:
            _add(values, f"nf_conntrack_frag6_{name}", f"{_CONNTRACK}frag6_{name}")
    return values


def conntrack() -> Values:
    """Returns entries, limits and counters; nothing if conntrack is not loaded."""
    values: Values = {}
    for name in _CONNTRACK_LIMITS:
        key = "entries" if name == "count" else name
        _add(values, key, f"{_CONNTRACK}{name}")
    if not values:
        return values
    found = _file_counters(_bytes(f"{_NET}/stat/nf_conntrack"))
    return values | (found or _netlink_counters())


def _file_counters(text: bytes) -> Values:
    """Returns the sums over all CPUs: a line for each, in hexadecimal."""
    head, *lines = text.decode("ascii", "replace").splitlines() or [""]
    names = head.split()
    found: Values = {}
    for line in lines:
        for column, number in zip(names, line.split(), strict=False):
            if column in _COLUMNS:
                name = _COLUMNS[column]
                try:
                    found[name] = found.get(name, 0) + int(number, 16)
                except ValueError:
                    return {}
    return found


def _netlink_counters() -> Values:
    modules = b"\n" + _bytes(_MODULES)
    if b"\nnf_conntrack " in modules and b"\nnf_conntrack_netlink " not in modules:
        return {}  # asking would load it
    try:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER) as sock:
            sock.settimeout(_PATIENCE)
            sock.bind((0, 0))
            return counters.read(sock)
    except OSError:
        return {}


def _queues(values: Values, path: str) -> None:
    if (found := _QUEUES.search(_bytes(path))) is not None:
        values["queues"], values["memory"] = map(int, found.groups())


def _named_columns(values: Values, path: str, title: bytes, wanted: tuple[str, ...]) -> None:
    """Adds the wanted columns of two lines that start with `title`: names and numbers."""
    lines = [line for line in _bytes(path).split(b"\n") if line.startswith(title + b" ")]
    if len(lines) < 2:
        return
    found = dict(zip(lines[0].decode("ascii", "replace").split(), lines[1].split(), strict=False))
    for name in wanted:
        if found.get(name, b"").isdigit():
            values[name] = int(found[name])
