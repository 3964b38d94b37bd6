# SPDX-License-Identifier: GPL-2.0-only
"""Packets of one flow have the same number."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.calls.flow import Flows
from ipttrace.trace.decode import headers as packet
from tests.data.records import entry, joined, tcp, udp, v4

A, B, C, NAT = "10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"


def address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def tracked(
    data: bytes,
    orig: tuple[str, int, str, int],
    reply: tuple[str, int, str, int] | None = None,
    **fields: object,
) -> record.Records:
    src, sport, dst, dport = orig
    rsrc, rsport, rdst, rdport = reply or (dst, dport, src, sport)
    given: dict[str, Any] = {
        "flags": record.F_CONNTRACK,
        "ct_proto": 17,
        "ct_orig_src": address(src),
        "ct_orig_sport": sport,
        "ct_orig_dst": address(dst),
        "ct_orig_dport": dport,
        "ct_reply_src": address(rsrc),
        "ct_reply_sport": rsport,
        "ct_reply_dst": address(rdst),
        "ct_reply_dport": rdport,
        "ct_status": 0x20 if reply else 0,
    }
    return entry(1, packet=data, **(given | fields))


def flows_of(*entries: record.Records, by: Flows | None = None) -> list[int]:
    together = joined(*entries)
    headers = packet.decode(together["packet"], together["caplen"], together["len"])
    journeys = np.arange(1, len(together) + 1, dtype=np.uint64)
    found: list[int] = (by or Flows()).assign(together, headers, journeys).tolist()
    return found


def of(*packets: bytes) -> list[int]:
    return flows_of(*(entry(1, packet=data) for data in packets))


def test_both_directions_are_one_flow_and_other_ports_are_another() -> None:
    there, back, other, swapped = of(
        v4(17, A, B, udp(1000, 53)),
        v4(17, B, A, udp(53, 1000)),
        v4(17, A, B, udp(1001, 53)),
        v4(17, A, B, udp(53, 1000)),
    )
    assert there == back
    assert len({there, other, swapped}) == 3


def test_flows_with_swapped_or_equal_sums_of_addresses_differ() -> None:
    found = of(
        v4(17, "10.0.0.1", "10.0.0.4", udp(9, 9)),
        v4(17, "10.0.0.2", "10.0.0.3", udp(9, 9)),
        v4(17, "10.0.0.4", "10.0.0.1", udp(9, 9)),
        v4(6, "10.0.0.1", "10.0.0.4", tcp(9, 9, 2)),
    )
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_each_process_hashes_flows_with_its_own_key() -> None:
    data = entry(1, packet=v4(17, A, B, udp(1, 2)))
    assert flows_of(data) != flows_of(data)


def test_a_packet_keeps_its_flow_before_and_after_nat() -> None:
    orig, reply = (A, 1000, NAT, 80), (B, 8080, A, 1000)
    flows = Flows()
    # GIVEN a packet in raw PREROUTING, before conntrack has seen it, then with
    # conntrack, then with its address rewritten
    found = flows_of(
        entry(1, packet=v4(17, A, NAT, udp(1000, 80))),
        tracked(v4(17, A, NAT, udp(1000, 80)), orig, reply),
        tracked(v4(17, A, B, udp(1000, 8080)), orig, reply),
        by=flows,
    )
    assert len(set(found)) == 1
    # WHEN the answer comes, first in raw PREROUTING again
    answer = flows_of(
        entry(1, packet=v4(17, B, A, udp(8080, 1000))),
        tracked(v4(17, B, A, udp(8080, 1000)), orig, reply),
        by=flows,
    )
    # THEN it belongs to the same flow
    assert answer == found[:2]


def test_the_same_tuple_in_another_zone_is_another_flow() -> None:
    data, orig = v4(17, A, B, udp(1, 2)), (A, 1, B, 2)
    one, two = flows_of(tracked(data, orig), tracked(data, orig, ct_zone=7))
    assert one != two


def test_an_echo_request_and_its_reply_are_one_flow_with_and_without_conntrack() -> None:
    request = v4(1, A, B, struct.pack(">BBHHH", 8, 0, 0, 77, 1))
    answer = v4(1, B, A, struct.pack(">BBHHH", 0, 0, 0, 77, 1))
    other = v4(1, A, B, struct.pack(">BBHHH", 8, 0, 0, 78, 1))
    # In conntrack, type and code take the place of the destination port.
    known = tracked(request, (A, 77, B, 0x0800), ct_proto=1)
    found = flows_of(
        entry(1, packet=request), entry(1, packet=answer), entry(1, packet=other), known
    )
    assert found[0] == found[1] == found[3] != found[2]


def test_an_icmp_error_belongs_to_the_flow_that_it_quotes() -> None:
    quoted = v4(17, A, B, udp(1000, 53))
    error = v4(1, C, A, struct.pack(">BBHI", 3, 1, 0, 0) + quoted[:28])
    cut = v4(1, C, A, struct.pack(">BBHI", 11, 0, 0, 0) + quoted[:10])
    flow, of_error, of_cut = of(quoted, error, cut)
    assert flow == of_error != of_cut
    six = struct.pack(">IHBB", 0x60000000, 8, 17, 64) + bytes(range(32)) + udp(5, 6)
    around = struct.pack(">IHBB", 0x60000000, 56, 58, 64) + bytes(32)
    assert len(set(of(six, around + struct.pack(">BBHI", 1, 4, 0, 0) + six))) == 1


def test_a_tracked_icmp_error_belongs_to_its_connection() -> None:
    quoted = v4(17, A, B, udp(1000, 53))
    error = v4(1, C, A, struct.pack(">BBHI", 3, 1, 0, 0) + quoted[:28])
    about = tracked(error, (A, 1000, B, 53), ct_info=4)
    assert len(set(flows_of(entry(1, packet=quoted), about))) == 1


def test_fragments_belong_to_the_flow_of_their_datagram() -> None:
    flows = Flows()
    whole = v4(17, A, B, udp(1000, 53))
    first = v4(17, A, B, udp(1000, 53, bytes(24)), frag=0x2000, ident=99)
    middle = v4(17, A, B, bytes(32), frag=0x2004, ident=99)
    stranger = v4(17, A, B, bytes(32), frag=0x2004, ident=98)
    found = flows_of(
        *(entry(1, packet=data) for data in (whole, middle, first, stranger)), by=flows
    )
    assert found[0] == found[1] == found[2] != found[3]
    # Later ones may come in a later batch.
    assert flows_of(entry(1, packet=middle), by=flows) == found[:1]


def test_an_unreadable_packet_has_no_flow() -> None:
    assert of(b"", b"\x45", bytes(40)) == [0, 0, 0]


def test_a_conntrack_template_is_not_a_flow() -> None:
    data = v4(17, A, B, udp(1000, 53))
    template = entry(1, packet=data, flags=record.F_CONNTRACK, ct_status=1 << 11)
    assert len(set(flows_of(entry(1, packet=data), template))) == 1
