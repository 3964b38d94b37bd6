# SPDX-License-Identifier: GPL-2.0-only
"""Filters as nf_tables rules match what libpcap matches, or more if they are not exact."""

from __future__ import annotations

import random
import socket
import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipttrace.capture.filter import nft as nft_filter
from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.capture.filter.nft import MAX_EXPRESSIONS, MAX_RULES, Check, Compiled, Load

EXACT = [
    "ip",
    "ip6",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "sctp",
    "not tcp",
    "not ip",
    "ip or not ip",
    "tcp or udp",
    "host 10.0.0.1",
    "src host 10.0.0.1 or dst host 10.0.0.2",
    "not host 10.0.0.1",
    "host 10.0.0.1 and not port 22",
    "net 10.0.0.0/8",
    "net 10.0.0.0/9 and not net 10.0.0.0/24",
    "src net 192.168.0.0/16 and dst net 10.0.0.0/8",
    "ip6 host 2001:db8::1",
    "ip6 net 2001:db8::/33",
    "host 10.0.0.1 or host 2001:db8::1",
    "not (host 10.0.0.1 or host 2001:db8::1)",
    "port 53",
    "not port 53",
    "udp port 53",
    "tcp dst port 443",
    "tcp src portrange 1000-2000",
    "portrange 50-60",
    "not tcp portrange 50-60",
    "tcp port 80 or tcp port 443",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "tcp[tcpflags] & tcp-syn != 0",
    "tcp[tcpflags] == tcp-syn",
    "tcp[13] & 0x12 = 0x12",
    "not tcp[13] & 2 != 0",
    "icmp[icmptype] == icmp-echo",
    "icmp[0] = 8 or icmp[0] = 0",
    "ip proto 47",
    "ip[0] & 0xf != 5",
    "ip[0] >> 4 = 4",
    "ip[6:2] & 0x1fff != 0",
    "ip[6:2] & 0x3fff != 0 and udp",
    "ip[8] < 5",
    "ip[8] > 200 or ip[8] <= 1",
    "ip[8] >= 64 and ip[8] != 128 and ip[8] < 200",
    "(ip[2:2] >> 2) << 1 > 20",
    "ip[2:2] << 20 >> 18 = 4",
    "ip[8] << 2 >= 257",
    "ip[8] << 2 > 255 and ip[8] >> 3 <= 8",
    "ip[12:4] > 0x0a000001",
    "ip[1] / 4 > 3",
    "ip[1] * 8 = 16",
    "tcp[0:4] >= 0x00350000",
    "udp[4:2] > 30",
    "ip6[6] = 17 and ip6[7] < 3",
    "ip6[40:2] & 0xff00 = 0",
    "len > 60",
    "less 40 or greater 80",
    "len = 48",
    "greater 30 and udp",
    "ip multicast",
    "ip6 multicast",
]
INEXACT = [
    "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
    "ip[2:2] - ((ip[0] & 0xf) << 2) > 20",
    "ip[ip[0] & 15] / 3 % 2 != tcp[0:4]",
    "tcp and ip[1] + 5 > ip[8]",
    "ip[300] = 1",
    "tcp[280] = 1 or udp",
    "udp[ip[8]] = 1 and len > 50",
    "ip[1] ^ 3 = 2",
    "ip[8] << ip[1] = 0",
    "udp and ip[8] % 3 = 1",
    "(udp or ip[0:2] + ip[2:2] > 20000) and net 10.0.0.0/8",
    "tcp or ip[8] / ip[1] = 3",
    " or ".join(f"host 10.0.{n}.1" for n in range(200)),
    " or ".join(f"(port {n} and ip[8] < {n})" for n in range(30, 60)),
]

V4 = ["10.0.0.1", "10.0.0.2", "10.127.3.1", "10.0.55.1", "192.168.1.1", "224.0.0.1",
      "255.255.255.255", "0.0.0.0"]  # fmt: skip
V6 = ["2001:db8::1", "2001:db8:8000::1", "2001:db9::1", "ff02::1", "::"]
PORTS = [22, 53, 54, 60, 80, 443, 1000, 1500, 2000, 2001]


def transport(rng: random.Random, proto: int) -> bytes:
    sport, dport = rng.choice(PORTS), rng.choice([*PORTS, rng.randrange(65536)])
    rest = rng.randbytes(rng.choice([0, 1, 4, 30, 300]))
    if proto == 6:
        flags = rng.choice([2, 0x12, 0x10, 4, rng.randrange(256)])
        words = (sport, dport, 1, 0, rng.choice([0x50, 0x60, 0xF0]), flags, 9, 0, 0)
        return struct.pack(">HHIIBBHHH", *words) + rng.choice([b"GET ", b""]) + rest
    if proto in (1, 58):
        return bytes([rng.choice([0, 3, 8, 128]), 0, 0, 0, 0, 0, 0, 0]) + rest
    return struct.pack(">HHHH", sport, dport, 8 + len(rest), 0) + rest


def ipv4(rng: random.Random) -> bytes:
    proto = rng.choice([1, 6, 6, 17, 17, 47, 132, rng.randrange(256)])
    words = rng.choice([5, 5, 5, 6, 15, rng.randrange(16)])
    fragment = rng.choice([0, 0, 0, 0x4000, 0x2000, 0x2003, 3, 0x1FFF])
    payload = rng.randbytes(max(0, words - 5) * 4) + transport(rng, proto)
    ttl = rng.choice([0, 1, 4, 5, 64, 128, 200, 255, rng.randrange(256)])
    head = struct.pack(">BBHHHBBH", 0x40 | words, rng.choice([0, 2, 16, 255]), 20 + len(payload),
                       rng.randrange(65536), fragment, ttl, proto, 0)  # fmt: skip
    return head + socket.inet_aton(rng.choice(V4)) + socket.inet_aton(rng.choice(V4)) + payload


def ipv6(rng: random.Random) -> bytes:
    proto = rng.choice([6, 17, 58, 132, rng.randrange(256)])
    payload = transport(rng, proto)
    following = proto
    if rng.random() < 0.2:
        following = 44
        offset = rng.choice([0, 1, 8])
        payload = struct.pack(">BBHI", proto, 0, offset, 7) + payload
    ends = [socket.inet_pton(socket.AF_INET6, rng.choice(V6)) for _ in range(2)]
    head = struct.pack(">IHBB", 0x60000000, len(payload), following, rng.choice([1, 2, 64]))
    return head + b"".join(ends) + payload


def packet(rng: random.Random) -> bytes:
    complete = (ipv4 if rng.random() < 0.6 else ipv6)(rng)
    chance = rng.random()
    if chance < 0.25:
        return complete[: rng.randrange(min(len(complete), 70) + 1)]
    return rng.randbytes(rng.randrange(80)) if chance > 0.97 else complete


@cache
def packets() -> list[bytes]:
    rng = random.Random(20011)
    return [packet(rng) for _ in range(3001)]


def compiled(expr: str) -> Compiled:
    return nft_filter.compile(pcapfilter.compile(expr))


@pytest.mark.parametrize("expr", EXACT)
def test_exact_rules_match_what_libpcap_matches(expr: str) -> None:
    rules = compiled(expr)
    assert rules.exact
    assert rules.location.startswith("in the kernel (")
    for one in packets():
        assert rules.matches(one) == pcapfilter.matches(rules.program, one), one.hex()


@pytest.mark.parametrize("expr", INEXACT, ids=lambda expr: expr[:40])
def test_rules_that_are_not_exact_match_more_and_never_less(expr: str) -> None:
    rules = compiled(expr)
    assert not rules.exact
    assert rules.location.endswith("in the agent, on the reported headers")
    for one in packets():
        assert rules.matches(one) or not pcapfilter.matches(rules.program, one), one.hex()


def columns(found: list[bytes], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packets, caplens and lens as `matches` gets them, with `width` bytes delivered."""
    headers = np.zeros((len(found), width), np.uint8)
    for i, one in enumerate(found):
        headers[i, : min(len(one), width)] = list(one[:width])
    lens = np.array([len(one) for one in found], np.uint32)
    return headers, np.minimum(lens, width), lens


@pytest.mark.parametrize("expr", ["", *EXACT, *INEXACT], ids=lambda expr: expr[:40])
def test_delivered_headers_are_checked_as_by_libpcap(expr: str) -> None:
    program = pcapfilter.compile(expr)
    truth = np.array([pcapfilter.matches(program, one) for one in packets()])
    # WHEN the packets are complete THEN all are decided
    taken, unknown = nft_filter.matches(program, *columns(packets(), 512))
    assert not unknown.any()
    assert (taken == truth).all()
    # WHEN only their first bytes are delivered THEN each is decided rightly, or reported
    for width in (20, 40, 60):
        taken, unknown = nft_filter.matches(program, *columns(packets(), width))
        assert not (taken & unknown).any()
        assert (taken == truth)[~unknown].all()


def test_a_packet_that_needs_an_undelivered_byte_is_undecided() -> None:
    rng = random.Random(3)
    complete = ipv4(rng)[:12] + bytes(8) + bytes(40)
    complete = b"\x45" + complete[1:6] + b"\0\0\x40\x11" + complete[10:]
    program = pcapfilter.compile("udp port 53")
    for caplen in range(len(complete) + 1):
        headers, _, lens = columns([complete], 128)
        taken, unknown = nft_filter.matches(program, headers, np.array([caplen]), lens)
        # The ports are bytes 20 to 23.
        assert (taken[0], unknown[0]) == (False, caplen < 24)


def test_no_filter_is_one_rule_that_matches_everything() -> None:
    rules = nft_filter.compile(b"")
    assert rules.rules == ((),)
    assert rules.exact
    assert rules.location == "every packet"
    assert rules.matches(b"")


def test_a_rule_has_only_the_checks_it_needs() -> None:
    rules = compiled("tcp dst port 443 and ip")
    assert rules.rules == (
        (
            Check(Load("network", 0, 1), 0xF0, (("eq", 0x40),)),
            Check(Load("network", 9, 1), 0xFF, (("eq", 6),)),
            Check(Load("network", 6, 2), 0x1FFF, (("eq", 0),)),
            Check(Load("transport", 2, 2), 0xFFFF, (("eq", 443),)),
        ),
    )
    assert rules.location == "in the kernel (1 nft rule)"


@pytest.mark.parametrize(
    "expr",
    [
        " or ".join(f"host 10.{n >> 8}.{n & 255}.1" for n in range(1000)),
        " and ".join(f"not host 10.{n >> 8}.{n & 255}.1" for n in range(1000)),
        " and ".join(f"(ip[{n}] = 1 or ip[{n + 1}] = 2)" for n in range(40)),
        " and ".join(f"not port {n}" for n in range(1, 200)),
        " or ".join(f"(ip[{n}] & 1 = 1 and ip[{n + 1}] > {n})" for n in range(200)),
    ],
    ids=lambda expr: expr[:30],
)
def test_a_huge_filter_makes_few_rules(expr: str) -> None:
    rules = compiled(expr)
    assert len(rules.rules) <= MAX_RULES
    assert sum(check.expressions for rule in rules.rules for check in rule) <= MAX_EXPRESSIONS
    for one in packets()[:500]:
        taken = pcapfilter.matches(rules.program, one)
        assert rules.matches(one) == taken if rules.exact else rules.matches(one) >= taken


def instructions(*code: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def test_rules_check_ports_only_in_packets_known_to_have_them() -> None:
    # GIVEN programs that compare a port without checking the version, or fragments
    load = ((0xB1, 0, 0, 0), (0x48, 0, 0, 0), (0x15, 0, 1, 53), (0x06, 0, 0, 1), (0x06, 0, 0, 0))
    version = ((0x30, 0, 0, 0), (0x54, 0, 0, 0xF0), (0x15, 0, 4, 0x40))
    first = ((0x28, 0, 0, 6), (0x45, 3, 0, 0x1FFF))
    end = ((0x06, 0, 0, 0),)
    programs = [instructions(*load), instructions(*version, *load, *end)]
    programs.append(instructions(*first, *load, *end))
    for program in programs:
        # THEN the rules leave out the port: nf_tables finds none in a later fragment
        rules = nft_filter.compile(program)
        assert not rules.exact
        assert all(rules.matches(one) or not pcapfilter.matches(program, one) for one in packets())
        assert all(check.load.base != "transport" for rule in rules.rules for check in rule)


def test_a_packet_that_ends_before_a_loaded_byte_does_not_match() -> None:
    # GIVEN a load whose value is not used, on one of two paths to the same answer
    program = instructions(
        (0x30, 0, 0, 8), (0x15, 1, 0, 1), (0x30, 0, 0, 60), (0x06, 0, 0, 1)
    )  # fmt: skip
    rules = nft_filter.compile(program)
    assert rules.exact
    for size in (8, 9, 60, 61):
        for value in (1, 2):
            one = bytes(8) + bytes([value]) + bytes(70)
            wanted = size >= 61 or (size >= 9 and value == 1)
            assert pcapfilter.matches(program, one[:size]) == wanted
            assert rules.matches(one[:size]) == wanted


def test_an_invalid_program_is_refused_in_one_line() -> None:
    for bad in (b"1234567", b"\xff" * 8):
        with pytest.raises(pcapfilter.FilterError, match="not a valid classic BPF program"):
            nft_filter.compile(bad)


# Loads near the start, so that random packets often reach them.
LOADS = st.tuples(
    st.sampled_from([0x20, 0x28, 0x30, 0x48, 0x50, 0x80, 0xB1, 0x00, 0x01, 0x60, 0x61]),
    st.just(0), st.just(0), st.integers(0, 12),
)  # fmt: skip
PLAIN = st.tuples(
    st.sampled_from([0x54, 0x64, 0x74, 0x24, 0x34, 0x04, 0x07, 0x87, 0x02, 0x03, 0x0C, 0x84]),
    st.just(0), st.just(0), st.sampled_from([1, 2, 3, 4, 8, 12]),
)  # fmt: skip
JUMPS = st.tuples(
    st.sampled_from([0x15, 0x25, 0x35, 0x45, 0x1D, 0x3D]), st.integers(0, 4), st.integers(0, 4),
    st.sampled_from([0, 1, 2, 4, 0x40, 0x45, 0x10, 0xF0, 0x4500, 0xFFFF]),
)  # fmt: skip


# A bit that is set, in a word that is 0: no packet takes this path.
IMPOSSIBLE = [
    (0x20, 0, 0, 1),
    (0x45, 1, 0, 1),
    (0x20, 0, 0, 0),
    (0x15, 3, 0, 0),
    *[(0x20, 0, 0, 0)] * 2,
]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.one_of(LOADS, PLAIN, JUMPS), max_size=24), st.integers(0, 2**32))
@example(IMPOSSIBLE, 0)
def test_the_rules_of_no_program_miss_a_packet(
    code: list[tuple[int, int, int, int]], seed: int
) -> None:
    ends = [(0x06, 0, 0, 0), (0x06, 0, 0, 1), (0x16, 0, 0, 0), (0x06, 0, 0, 0), (0x06, 0, 0, 1)]
    # libpcap's scratch memory is not initialised.
    start = [(0x02, 0, 0, k) for k in range(16)]
    program = b"".join(struct.pack("=HBBI", *one) for one in [*start, *code, *ends])
    rules = nft_filter.compile(program)
    rng = random.Random(seed)
    some = [packet(rng) for _ in range(40)] + [rng.choice([b"\x45", b"\x01"]) * n for n in (1, 30)]
    truth = np.array([pcapfilter.matches(program, one) for one in some])
    taken, unknown = nft_filter.matches(program, *columns(some, 512))
    assert not unknown.any()
    assert (taken == truth).all()
    for one, wanted in zip(some, truth, strict=True):
        assert rules.matches(one) == wanted if rules.exact else rules.matches(one) >= wanted


def test_a_program_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a program that was compiled
    program = pcapfilter.compile("udp port 53")
    first = nft_filter.compile(program)
    # WHEN the same program is compiled again, and nothing can be compiled any more
    monkeypatch.setattr(nft_filter, "Search", None)
    again = nft_filter.compile(bytes(bytearray(program)))
    # THEN the rules are those from before
    assert again is first
