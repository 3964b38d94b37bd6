# SPDX-License-Identifier: GPL-2.0-only
"""Connections are looked up once, and an answer that is not the packet's is not taken."""

from __future__ import annotations

import random
import socket
import struct
from typing import Any

import pytest

from ipttrace.capture.netlink import conntrack_table as table
from ipttrace.stream import record
from tests.data.records import Array, entry, joined, udp, v4
from tests.unit.capture.netlink.legacy.test_decode import attribute, ports, tuple_of

CLIENT, SERVER, PUBLIC = (socket.inet_aton(f"10.0.0.{last}") for last in (1, 2, 3))
ID = 0xFEDCBA98
SENT = v4(17, "10.0.0.1", "10.0.0.3", udp(40000, 53))


def answer(number: int = ID, *, status: int = 0x1AA, zone: int | None = None) -> bytes:
    """An entry: from the client to port 53 of PUBLIC, translated to port 5353 of SERVER."""
    return b"".join(
        (
            tuple_of(1, [CLIENT, PUBLIC], *ports(17, 40000, 53)),
            tuple_of(2, [SERVER, CLIENT], *ports(17, 5353, 40000)),
            attribute(12, struct.pack("!I", number)),
            attribute(3, struct.pack("!I", status)),
            attribute(8, struct.pack("!I", 42)),
            b"" if zone is None else attribute(18, struct.pack("!H", zone)),
        )
    )


class Kernel:
    """In place of the socket: answers every request with the same entry."""

    def __init__(self, body: bytes | None) -> None:
        self.body = body
        self.asked = 0
        self._answers: list[bytes] = []

    def sendto(self, data: bytes, _: Any) -> None:
        at = 0
        while at < len(data):
            length, _, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
            self.asked += 1
            if self.body is not None:
                head = struct.pack("=IHHII", 20 + len(self.body), 1 << 8, 0, sequence, 0)
                self._answers.append(head + bytes(4) + self.body)
            at += length

    def recvfrom(self, most: int) -> tuple[bytes, tuple[int, int]]:
        if not self._answers:
            raise BlockingIOError
        return self._answers.pop(0)[:most], (0, 0)

    def close(self) -> None:
        pass


@pytest.fixture
def made() -> table.ConntrackTable:
    found = table.ConntrackTable()
    found._socket.close()
    return found


def filled(made: table.ConntrackTable, kernel: Kernel, *entries: Array) -> Array:
    made._socket = kernel  # type: ignore[assignment]
    found = joined(*entries)
    made.fill(found)
    return found


def row(packet: bytes = SENT, info: int = 2, number: int = ID, **more: Any) -> Array:
    return entry(1, 0, packet, ct_flags=record.CT_STATE, ct=number, ct_info=info, **more)


def is_known(found: Array) -> list[bool]:
    return [bool(one) for one in found["flags"] & record.F_CONNTRACK]


def test_a_row_gets_tuple_and_zone_and_no_mark(made: table.ConntrackTable) -> None:
    found = filled(made, Kernel(answer(zone=9)), row(ct_status=0x8))[0]
    assert found["flags"] & record.F_CONNTRACK
    assert found["ct_flags"] & record.CT_NO_MARK
    assert bytes(found["ct_orig_src"][:4]) == CLIENT
    assert bytes(found["ct_orig_dst"][:4]) == PUBLIC
    assert (found["ct_orig_sport"], found["ct_orig_dport"]) == (40000, 53)
    assert (found["ct_zone"], found["ct_proto"], found["ct_mark"]) == (9, 17, 0)
    assert (bytes(found["ct_reply_src"][:4]), found["ct_reply_sport"]) == (SERVER, 5353)


def test_the_reply_s_tuple_is_not_known_before_nat_is_decided(made: table.ConntrackTable) -> None:
    found = filled(made, Kernel(answer()), row(ct_status=0))[0]
    assert found["ct_orig_sport"] == 40000
    assert not found["ct_reply_src"].any()


def test_each_form_of_the_packet_is_of_the_connection(made: table.ConntrackTable) -> None:
    translated = v4(17, "10.0.0.1", "10.0.0.2", udp(40000, 5353))
    back = v4(17, "10.0.0.2", "10.0.0.1", udp(5353, 40000))
    restored = v4(17, "10.0.0.3", "10.0.0.1", udp(53, 40000))
    kernel = Kernel(answer())
    found = filled(made, kernel, row(), row(translated), row(back, 3), row(restored, 3))
    assert is_known(found) == [True] * 4
    # AND what is known is not asked for again: the packet's tuple and the same turned round
    assert kernel.asked == 2
    filled(made, kernel, row(), row(back, 3))
    assert kernel.asked == 2


@pytest.mark.parametrize(
    "packet",
    [
        v4(17, "10.0.0.9", "10.0.0.3", udp(40000, 53)),
        v4(17, "10.0.0.1", "10.0.0.3", udp(40001, 53)),
        v4(6, "10.0.0.1", "10.0.0.3", udp(40000, 53) + bytes(20)),
        v4(17, "10.0.0.1", "10.0.0.3", udp(40000, 53), 185),
        v4(1, "10.0.0.3", "10.0.0.1", b"\3\1" + bytes(6) + SENT),
        v4(47, "10.0.0.1", "10.0.0.3", bytes(8)),
        SENT[:24],
        b"",
    ],
    ids=["address", "port", "protocol", "fragment", "error", "gre", "cut", "nothing"],
)
def test_an_entry_of_the_same_id_and_other_addresses_is_not_the_packet_s(
    made: table.ConntrackTable, packet: bytes
) -> None:
    found = filled(made, Kernel(answer()), row(), row(packet))
    assert is_known(found) == [True, False]


def test_an_answer_with_another_id_is_another_connection_s(made: table.ConntrackTable) -> None:
    kernel = Kernel(answer(ID + 1))
    assert is_known(filled(made, kernel, row())) == [False]
    # AND it is asked for once more, then no longer
    for _ in range(5):
        filled(made, kernel, row())
    assert kernel.asked == 4


def test_a_flood_of_new_connections_is_not_looked_up_one_by_one(
    made: table.ConntrackTable,
) -> None:
    kernel = Kernel(None)
    for start in range(0, 40_000, 4_000):
        numbers = range(start + 1, start + 4_001)
        filled(made, kernel, *(row(number=number) for number in numbers))
    # 500 and what time allows, each with two requests; and memory is bounded.
    assert 1_000 <= kernel.asked < 20_000
    assert len(made._known) <= 1 << 14
    assert len(made._entries) <= 1 << 14


def test_damaged_answers_do_no_harm(made: table.ConntrackTable) -> None:
    rng, known = random.Random(4711), 0
    good = answer(zone=1)
    for turn in range(2_000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        body = bytes(data[: rng.randrange(len(data) + 1)]) + bytes(rng.randrange(0, 2_000, 400))
        made._known.clear()
        made._allowed = 1.0
        found = filled(made, Kernel(body), row(number=turn % 3 + ID))
        known += sum(is_known(found))
    # Some damages leave what counts.
    assert 0 < known < 2_000


def test_a_kernel_without_conntrack_s_netlink_leaves_all_unknown(
    made: table.ConntrackTable,
) -> None:
    class Refusing(Kernel):
        def sendto(self, data: bytes, _: Any) -> None:
            raise OSError(95, "not supported")

    assert is_known(filled(made, Refusing(None), row())) == [False]
