# SPDX-License-Identifier: GPL-2.0-only
"""rtnetlink messages about neighbours are decoded field by field; other bytes are skipped."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.capture.neighbours import messages
from ipttrace.capture.neighbours.dump import dump


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes, seq: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, seq, 0) + body


def u32(n: int) -> bytes:
    return struct.pack("=I", n)


def u64(n: int) -> bytes:
    return struct.pack("=Q", n)


# NDTPA_* of linux/neighbour.h; each gets a value of its own.
PARMS = {
    2: ("refcnt", u32),
    3: ("reachable_time", u64),
    4: ("base_reachable_time", u64),
    5: ("retrans_time", u64),
    6: ("gc_staletime", u64),
    7: ("delay_probe_time", u64),
    8: ("queue_len", u32),
    9: ("app_probes", u32),
    10: ("ucast_probes", u32),
    11: ("mcast_probes", u32),
    12: ("anycast_delay", u64),
    13: ("proxy_delay", u64),
    14: ("proxy_qlen", u32),
    15: ("locktime", u64),
    16: ("queue_lenbytes", u32),
    17: ("mcast_reprobes", u32),
    19: ("interval_probe_time_ms", u64),
}
STATS = (
    "allocs",
    "destroys",
    "hash_grows",
    "res_failed",
    "lookups",
    "hits",
    "rcv_probes_mcast",
    "rcv_probes_ucast",
    "periodic_gc_runs",
    "forced_gc_runs",
    "table_fulls",
)


def parms(*first: bytes) -> bytes:
    rest = b"".join(attribute(kind, pack(100 + kind)) for kind, (_, pack) in PARMS.items())
    return attribute(6, b"".join(first) + rest + attribute(18, b""))


WANTED_PARMS = {name: 100 + kind for kind, (name, _) in PARMS.items()}


def test_a_table_is_decoded_to_its_last_field() -> None:
    raw = message(
        64,
        struct.pack("=B3x", 2)
        + attribute(1, b"arp_cache\0")
        + attribute(8, u64(30_000))
        + b"".join(attribute(1 + n, u32(128 << n)) for n in (1, 2, 3))
        + attribute(5, struct.pack("=HHIIIIIII", 4, 336, 12, 13, 14, 15, 16, 17, 18))
        + attribute(9, b"")
        + attribute(7, struct.pack("=11Q", *range(1 << 40, (1 << 40) + 11)))
        + parms(),
    )
    value = messages.table(raw)
    assert isinstance(value, dict)
    assert (value["name"], value["family"]) == ("arp_cache", 4)
    assert value["thresholds"] == [256, 512, 1024]
    assert value["gc_interval"] == 30_000
    assert list(value["config"].values()) == [4, 336, 12, 13, 14, 15, 16, 17, 18]
    assert value["stats"] == {one: (1 << 40) + n for n, one in enumerate(STATS)}
    assert value["parms"] == WANTED_PARMS


def test_a_devices_parameters_are_decoded_to_the_last() -> None:
    body = struct.pack("=B3x", 10) + attribute(1, b"ndisc_cache\0")
    raw = message(64, body + parms(attribute(1, u32(7))))
    assert messages.table(raw) == messages.DeviceParameters(7, 6, WANTED_PARMS)


def _neighbour(*attributes: bytes, family: int = 2, state: int = 2, flags: int = 0) -> bytes:
    head = struct.pack("=B3xiHBB", family, 3, state, flags, 1)
    return message(28, head + b"".join(attributes))


DST = attribute(1, bytes([10, 0, 0, 2]))
LLADDR = attribute(2, bytes.fromhex("001b21aabbcc"))
PROBES = attribute(4, u32(3))
CACHE = attribute(3, struct.pack("=4I", 100, 200, 300, 4))


def test_a_neighbour_is_decoded_with_all_its_flags() -> None:
    extended = attribute(15, u32(1))
    raw = _neighbour(DST, LLADDR, PROBES, CACHE, attribute(12, b"\x10"), extended, flags=0x80)
    assert messages.neighbour(raw) == {
        "family": 4,
        "dst": "10.0.0.2",
        "dev": 3,
        "state": 2,
        "flags": 0x180,
        "lladdr": "00:1b:21:aa:bb:cc",
        "probes": 3,
        "protocol": 16,
    }


def test_times_are_split_off_a_neighbour_so_that_the_rest_stays_the_same() -> None:
    constant, times = messages.split_times(
        _neighbour(DST, LLADDR, PROBES, CACHE, attribute(12, b"\x10"))
    )
    assert times == (1000, 2000, 3000, 4)
    later = attribute(3, struct.pack("=4I", 7, 8, 9, 9))
    again, times = messages.split_times(
        _neighbour(DST, LLADDR, PROBES, later, attribute(12, b"\x10"))
    )
    assert again == constant
    assert times == (70, 80, 90, 9)


def test_an_address_that_looks_like_the_times_is_not_mistaken_for_them() -> None:
    # the header of NDA_CACHEINFO in a link-layer address
    raw = _neighbour(DST, attribute(2, struct.pack("=HH", 20, 3) + bytes(16)), CACHE)
    assert messages.split_times(raw)[1] == (1000, 2000, 3000, 4)
    assert messages.split_times(_neighbour(DST))[1] is None


def test_a_multipath_route_omits_dead_next_hops() -> None:
    def hop(flags: int, device: int, via: bytes) -> bytes:
        rest = attribute(5, via) if via else b""
        return struct.pack("=HBBi", 8 + len(rest), flags, 0, device) + rest

    hops = hop(0, 2, bytes([10, 0, 0, 2])) + hop(1, 3, bytes([10, 0, 0, 3])) + hop(0, 4, b"")
    head = struct.pack("=8BI", 2, 16, 0, 0, 254, 3, 0, 1, 0)
    body = attribute(1, bytes([10, 7, 0, 0])) + attribute(15, u32(254)) + attribute(9, hops)
    assert messages.route(message(24, head + body)) == {
        "family": 4,
        "dst": "10.7.0.0/16",
        "type": 1,
        "table": 254,
        "metric": 0,
        "hops": [(2, "10.0.0.2"), (4, None)],
    }


def test_a_gateway_of_the_other_family_is_decoded() -> None:
    head = struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
    via = attribute(18, struct.pack("=H", 10) + bytes.fromhex("fe80" + "00" * 13 + "01"))
    raw = message(24, head + attribute(15, u32(254)) + via + attribute(4, u32(2)))
    found = messages.route(raw)
    assert found is not None
    assert found["hops"] == [(2, "fe80::1")]


@pytest.mark.parametrize(("table", "flags"), [(100, 0), (254, 0x200)])
def test_routes_of_other_tables_and_cached_routes_are_omitted(table: int, flags: int) -> None:
    head = struct.pack("=8BI", 2, 0, 0, 0, 0, 3, 0, 1, flags)
    assert messages.route(message(24, head + attribute(15, u32(table)))) is None


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("001b21aabbcc", "00:1b:21:aa:bb:cc"),
        ("7f000001", "127.0.0.1"),  # a tunnel's
        ("00" * 15 + "01", "::1"),
        ("8000" * 10, ":".join(["80:00"] * 10)),  # InfiniBand
        ("", None),
    ],
)
def test_link_layer_addresses_of_any_length_are_decoded(address: str, text: str | None) -> None:
    body = struct.pack("=BxHiII", 0, 1, 9, 0x1003, 0) + attribute(1, bytes.fromhex(address))
    value = messages.link(message(16, body))
    assert value is not None
    assert value["lladdr"] == text


def test_a_devices_name_may_contain_any_byte() -> None:
    body = struct.pack("=BxHiII", 0, 1, 9, 0x1003, 0) + attribute(3, b"v\xff\x1b\0")
    value = messages.link(message(16, body + attribute(4, u32(1500))))
    assert value is not None
    assert value["name"].encode("utf-8", "surrogateescape") == b"v\xff\x1b"
    assert (value["index"], value["mtu"], value["flags"]) == (9, 1500, 0x1003)


DECODERS = (
    messages.table,
    messages.link,
    messages.neighbour,
    messages.route,
    messages.is_policy,
    messages.split_times,
)


@given(st.binary(max_size=200), st.integers(0, 0xFFFF))
def test_bytes_that_are_no_such_message_raise_nothing(body: bytes, kind: int) -> None:
    for decode in DECODERS:
        decode(message(kind, body))


@pytest.mark.parametrize("size", [0, 1, 3, 200])
def test_a_wrong_length_ends_the_attributes_of_a_route(size: int) -> None:
    head = struct.pack("=8BI", 2, 16, 0, 0, 254, 3, 0, 1, 0)
    encap = struct.pack("=HH", size, 22) + bytes(8)  # RTA_ENCAP
    found = messages.route(message(24, head + attribute(4, u32(2)) + encap))
    assert found is not None
    assert found["hops"] == [(2, None)]


@given(st.data())
def test_a_message_with_a_damaged_byte_raises_nothing(data: st.DataObject) -> None:
    raw = bytearray(_neighbour(DST, LLADDR, PROBES, CACHE))
    at = data.draw(st.integers(16, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    for decode in DECODERS:
        decode(bytes(raw))


class Answers:
    """A socket that receives these messages."""

    def __init__(self, *parts: bytes, sender: int = 0) -> None:
        self._parts = [(part, (sender, 0)) for part in parts]

    def send(self, data: bytes) -> int:
        return len(data)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._parts:
            raise TimeoutError("timed out")
        return self._parts.pop(0)


def _dump(*parts: bytes, **more: Any) -> list[bytes]:
    return list(dump(Answers(*parts, **more), 30, b""))  # type: ignore[arg-type]


def test_a_dump_is_read_to_its_end_in_portions_of_any_size() -> None:
    one, two = message(28, b"1234", 30), message(28, b"12345678", 30)
    done = message(3, u32(0), 30)
    assert _dump(one + two, one, done + two) == [one, two, one]
    # AND messages of another request are skipped
    assert _dump(message(28, b"", 29) + one + done) == [one]


def test_a_dump_that_the_kernel_refuses_raises_its_error() -> None:
    with pytest.raises(PermissionError, match="Operation not permitted"):
        _dump(message(2, struct.pack("=i", -1) + bytes(16), 30))


@pytest.mark.parametrize("size", [0, 15, 1000])
def test_a_wrong_length_ends_a_dump(size: int) -> None:
    with pytest.raises(OSError, match="cut off"):
        _dump(struct.pack("=IHHII", size, 28, 2, 30, 0) + bytes(20))


def test_messages_from_other_processes_are_skipped() -> None:
    with pytest.raises(TimeoutError):
        _dump(message(28, b"1234", 30) + message(3, u32(0), 30), sender=4711)
