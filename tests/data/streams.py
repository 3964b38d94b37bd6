# SPDX-License-Identifier: GPL-2.0-only
"""Synthetic streams for the screen's tests, made with numpy.

A small lab: packets that pass raw, mangle, nat and filter, four rows each, one
in seven of them dropped in filter.  Must not need root, a kernel or a clock.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.messages import Level
from ipttrace.stream.record import Records
from ipttrace.stream.writer import Writer
from tests.data import messages

WALL = messages.WALL
TABLES = (
    (b"raw", b"PREROUTING"),
    (b"mangle", b"PREROUTING"),
    (b"nat", b"PREROUTING"),
    (b"filter", b"FORWARD"),
)
HOOKS = (0, 0, 0, 2)


def _packet(number: int) -> bytes:
    sport, dport = 40000 + number % 1000, (80, 443, 8080, 53)[number % 4]
    kind = number % 3
    if kind == 2:
        inner = struct.pack("!BBHHH", 8, 0, 0, 7, number % 65536)
        proto = 1
    elif kind == 1:
        inner = struct.pack("!HHHH", sport, dport, 8 + 20, 0)
        proto = 17
    else:
        inner = struct.pack("!HHIIBBHHH", sport, dport, number, 0, 0x50, 0x02, 65535, 0, 0)
        proto = 6
    length = 20 + len(inner)
    src = bytes((10, 1, number % 3, 2 + number % 200))
    dst = bytes((192, 0, 2, 1 + number % 9))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, number % 65536, 0, 64, proto, 0, src, dst)
    return head + inner


def records(rows: int, start: int = 0) -> tuple[Records, Records, Records]:
    """Entry, rule and exit records of `rows` calls, from call number `start` on."""
    call = np.arange(start, start + rows, dtype=np.uint64)
    step = (call % 4).astype(np.intp)
    packet = call // 4
    entry = np.zeros(rows, record.ENTRY_DTYPE)
    entry["call"] = call + 1
    entry["time"] = 1_000_000 * packet + 10_000 * step
    entry["skb"] = 0xFFFF_8880_0000_0000 + 256 * (packet % 4096)
    entry["netns"] = 4026532456
    entry["family"] = 2
    entry["protocol"] = 0x0800
    entry["hook"] = np.array(HOOKS, np.uint8)[step]
    entry["flags"] = np.where(step == 0, record.F_FIRST, record.F_FOLLOWED)
    entry["table"] = np.array([table for table, _ in TABLES], "S32")[step]
    entry["pid"], entry["tid"], entry["cpu"] = 1234, 1234, 1
    entry["comm"] = b"ping"
    entry["in"] = b"eth0"
    entry["out"] = np.array([b"", b"", b"", b"eth1"], "S16")[step]
    packets = [_packet(number) for number in range(840)]
    bodies = np.zeros((840, 128), np.uint8)
    for number, body in enumerate(packets):
        bodies[number, : len(body)] = np.frombuffer(body, np.uint8)
    lengths = np.array([len(body) for body in packets], np.uint16)
    which = (packet % 840).astype(np.intp)
    entry["packet"] = bodies[which]
    entry["caplen"] = entry["len"] = lengths[which]
    dropped = (step == 3) & (packet % 7 == 6)
    rule = np.zeros(rows, record.RULE_DTYPE)
    rule["call"] = call + 1
    rule["time"] = entry["time"] + 500
    rule["rulenum"] = 1 + packet % 5
    rule["match"] = np.where((step == 1), 2, 0)
    rule["table"] = entry["table"]
    rule["chain"] = np.array([chain for _, chain in TABLES], "S32")[step]
    exit_ = np.zeros(rows, record.EXIT_DTYPE)
    exit_["call"] = call + 1
    exit_["skb"] = entry["skb"]
    exit_["cost"] = 800 + 1700 * step + 37 * (packet % 100)
    exit_["time"] = entry["time"] + exit_["cost"]
    exit_["verdict"] = np.where(dropped, 0, 1)
    exit_["rules"] = 1
    exit_["flags"] = np.where(dropped, 0, record.EXIT_F_ALIVE)
    return entry, rule, exit_


def hello(**changes: Any) -> bytes:
    """The first frame."""
    sink = io.BytesIO()
    Writer(sink).hello(messages.hello(**changes))
    return sink.getvalue()


def frames(*kinds: Records) -> bytes:
    """Entry, rule and exit records as frames."""
    sink = io.BytesIO()
    writer = Writer(sink)
    for kind, array in enumerate(kinds):
        writer.records(kind, array)
    return sink.getvalue()


def rows(count: int, start: int = 0) -> bytes:
    """Frames that make `count` rows."""
    return frames(*records(count, start))


def books(**changes: Any) -> bytes:
    """A frame of counters."""
    sink = io.BytesIO()
    Writer(sink).books(messages.books(**changes))
    return sink.getvalue()


def note(level: Level, text: str) -> bytes:
    """A frame with a note."""
    sink = io.BytesIO()
    Writer(sink).note(level, text)
    return sink.getvalue()


def end(reason: str = "asked to", **changes: Any) -> bytes:
    """The last frame."""
    sink = io.BytesIO()
    Writer(sink).end(messages.end(reason, **changes))
    return sink.getvalue()


def complete(count: int) -> bytes:
    """A stream of `count` rows from beginning to end."""
    return hello() + rows(count) + end()
