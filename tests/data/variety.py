# SPDX-License-Identifier: GPL-2.0-only
"""A recording of calls in which every field has every kind of value, independently.

Few values of each: so many calls share some of them, and differ in one.
"""

from __future__ import annotations

import socket
from io import BytesIO
from typing import Any

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import ChainRules, Rules
from ipttrace.stream.writer import Writer
from ipttrace.trace.session import Trace
from tests.data.messages import hello
from tests.data.records import MONO, Array, tcp, udp, v4
from tests.data.traces import feed_records, feed_stream

NETNS = (4026531840, 4026532456, 7)
NAMES = (
    b"",
    b"lan0",
    b"=cmd()",
    b'a,b"c',
    b"x;=1",
    b"\x1b[2J\r\n",
    "\u202e防火墙🔥".encode(),
    b"\xff\xed\xa0\x80",
    b" @x",
)
FAMILIES: tuple[int | str, ...] = (4, 6, "ip", "inet")
RULES = (
    "-p tcp -j ACCEPT",
    '=HYPERLINK("http://x","y"),;+1',
    '-m comment --comment "\x1b[31m \u202e ' + "c" * 300 + '" -j DROP',
    "",
)


def _v6(proto: int, payload: bytes, last: int) -> bytes:
    head = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes((proto, 64))
    ends = (socket.inet_pton(socket.AF_INET6, f"2001:db8::{n}") for n in (last, 9))
    return head + b"".join(ends) + payload


PACKETS = (
    b"",
    b"\xff" * 60,
    v4(6, "10.0.0.1", "10.0.0.2", tcp(1000, 443, 0x02)),
    v4(6, "10.0.0.1", "10.0.0.2", tcp(1000, 443, 0x12)),
    v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, b"x")),
    v4(17, "10.0.0.1", "10.0.0.2", udp(0, 53)),
    v4(17, "10.0.0.3", "10.0.0.2", udp(1000, 53), frag=0x2000, ident=7),
    v4(17, "10.0.0.3", "10.0.0.2", bytes(40), frag=0x0005, ident=8),
    v4(1, "10.0.0.1", "10.0.0.2", bytes((8, 0)) + bytes(6)),
    v4(1, "10.0.0.1", "10.0.0.2", bytes((3, 1)) + bytes(6)),
    v4(47, "10.0.0.1", "10.0.0.2", bytes(8)),
    v4(253, "10.0.0.1", "10.0.0.2", b""),
    _v6(6, tcp(1000, 443, 0x02), 1),
    _v6(17, udp(1000, 53), 2),
    _v6(58, bytes((128, 0)) + bytes(6), 1),
    _v6(44, bytes((17, 0, 0, 9)) + bytes((0, 0, 0, 5)) + udp(1, 2), 1),
)


def _pick(rng: np.random.Generator, count: int, values: Any, dtype: Any = None) -> Array:
    pool = np.array(values, dtype)
    return pool[rng.integers(0, len(pool), count)]


def _entries(rng: np.random.Generator, count: int) -> Array:
    made = np.zeros(count, record.ENTRY_DTYPE)
    made["call"] = np.arange(1, count + 1)
    made["time"] = MONO + np.arange(count) * 700_000_000
    flags = (record.F_FIRST, record.F_FOLLOWED, record.F_SOFTIRQ)
    pools: dict[str, Any] = {
        "skb": (0, 0x1000, 0xFFFF888104A3B200),
        "netns": (NETNS[0], NETNS[0], *NETNS),
        "len": (0, 84, 4_000_000_000),
        "mark": (0, 1, 0xFFFFFFFF),
        "ct_mark": (0, 1, 0xFFFFFFFF),
        "ct_zone": (0, 1, 0xFFFF),
        "ct_flags": (0, 0, *range(9)),
        "ct_status": (0, 0x20, 1 << 11),
        "ct_orig_sport": (0, 1000, 65535),
        "ct_orig_dport": (0, 443),
        "family": (2, 2, 10, 10, 3, 7, 5),
        "hook": (0, 1, 2, 3, 4, 9, 255),
        "ct_info": range(9),
        "ct_proto": (0, 1, 6, 17, 132),
        "ruleset": (0, 1, 1, 2, 2),
        "pid": (0, 1, 4_000_000),
        "cpu": (0, 1, 255),
        "mac_len": (0, 6, 14),
        "source": (record.SOURCE_KERNEL, record.SOURCE_NFT, record.SOURCE_NFLOG),
        "tables": (0, 0, 0, 0, 1, 2, 5, 12),
        "trace_id": (0, 1, 0x1F2E3D4C, 0xFFFFFFFF),
        "caplen": (0, 24, 128),
        "in_ifindex": (0, 2),
        "out_ifindex": (0, 3),
        "physin_ifindex": (0, 4),
        "physout_ifindex": (0, 5),
        "table": (*NAMES, *[b"filter"] * len(NAMES)),
        "comm": NAMES,
        "in": NAMES,
        "out": NAMES,
        "physin": NAMES,
        "physout": (b"", *NAMES),
    }
    for name, pool in pools.items():
        made[name] = _pick(rng, count, list(pool), record.ENTRY_DTYPE[name])
    made["flags"] = _pick(rng, count, flags)
    for flag in (record.F_CONNTRACK, record.F_NO_MARK, record.F_NO_LEN):
        made["flags"] |= _pick(rng, count, (0, flag), np.uint8)
    for name in ("ct_orig_src", "ct_orig_dst"):
        made[name][:, 0] = _pick(rng, count, (0, 10, 255))
        made[name][:, 15] = _pick(rng, count, (0, 1))
    made["mac"][:, :14:3] = rng.integers(0, 2, (count, 5))
    packets = np.zeros((len(PACKETS), 128), np.uint8)
    for at, packet in enumerate(PACKETS):
        packets[at, : len(packet)] = np.frombuffer(packet, np.uint8)
    made["packet"] = _pick(rng, count, packets)
    return made


def _rules(rng: np.random.Generator, entries: Array) -> tuple[Array, Array]:
    """The rules of each call, and their number."""
    counts = _pick(rng, len(entries), (0, 1, 1, 2, 3))
    made = np.zeros(int(counts.sum()), record.RULE_DTYPE)
    made["call"] = np.repeat(entries["call"], counts)
    made["time"] = np.repeat(entries["time"], counts) + 1
    made["seq"] = np.arange(len(made)) - np.repeat(np.cumsum(counts) - counts, counts)
    made["rulenum"] = _pick(rng, len(made), (0, 1, 1, 1, 2, 3, 4_000_000_000))
    made["match"] = _pick(rng, len(made), (0, 0, 0, 1, 2, 9))
    made["chain"] = _pick(rng, len(made), [*NAMES, *[b"FORWARD"] * len(NAMES)])
    return made, counts


def trace(count: int, seed: int, *, host: int = 0, into: Trace | None = None) -> Trace:
    """A trace of `count` calls; the first generation of some tables is known, no later one."""
    rng = np.random.default_rng(seed)
    entries = _entries(rng, count)
    rules, counts = _rules(rng, entries)
    exits = np.zeros(count, record.EXIT_DTYPE)
    for name in ("call", "time", "skb"):
        exits[name] = entries[name]
    exits["cost"] = _pick(rng, count, (0, 999, 12_345, 999_600, (1 << 64) - 1), np.uint64)
    exits["verdict"] = _pick(rng, count, (0, 1, 2, 3, 4, 9, 0x10003))
    exits["rules"] = counts + _pick(rng, count, (0, 0, 0, 1))
    for flag in (record.EXIT_F_ALIVE, record.EXIT_F_CHANGED, record.EXIT_F_NO_VERDICT):
        exits["flags"] |= _pick(rng, count, (0, 0, 0, 0, flag), np.uint8)
    made = Trace(host=host) if into is None else Trace(host=host, store=into.store)
    feed_stream(made, _beginning())
    feed_records(made, entries, rules, exits)
    made.finish()
    return made


def rules_frame(since: int, family: int | str = 4) -> Rules:
    """The rules of a table from a generation on: a RULES frame."""
    chain: ChainRules = {"policy": None, "rules": list(RULES)}
    return {
        "netns": NETNS[0],
        "family": family,
        "table": "filter",
        "backend": "legacy",
        "since": since,
        "mono": MONO,
        "chains": {"FORWARD": chain, "lan0": chain},
        "upto": since,
    }


def _beginning() -> bytes:
    sink = BytesIO()
    writer = Writer(sink)
    writer.hello(hello(engine="kernel+netlink", netns={str(NETNS[0]): "router"}))
    writer.note("warn", "=a note\x1b[2J")
    for family in FAMILIES:
        writer.message(Kind.RULES, rules_frame(1, family))
    return sink.getvalue()
