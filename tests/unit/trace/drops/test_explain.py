# SPDX-License-Identifier: GPL-2.0-only
"""What a user is told about a drop: the cause, and what to look at next."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ipttrace.stream import record
from ipttrace.trace.drops.explain import explain, neighbour, route
from ipttrace.trace.drops.functions import BY_BOTH, BY_FUNCTION, WITHOUT_REASONS
from ipttrace.trace.drops.reasons import REASONS
from ipttrace.trace.drops.where import function, is_netfilter
from ipttrace.trace.row import Aside, Owner, Row
from tests.data.rows import IPV6, PLAIN

LOST = replace(
    PLAIN,
    hook="",
    table="",
    chain=None,
    rulenum=None,
    match=None,
    path=(),
    verdict=None,
    cost_ns=None,
    drop=True,
    station="dropped",
    in_="eth1",
    out=None,
    src="10.1.0.2",
    dst="192.0.2.7",
    proto="UDP",
    dport=53,
    flags=None,
    mark=0,
)


def dropped(reason: str | None, place: str | None, **changes: object) -> Row:
    return replace(LOST, reason=reason, place=place, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "place", "words"),
    [
        ("IP_RPFILTER", "ip_rcv_finish_core+0x1d2", "reverse path filter on eth1 does not expect"),
        ("IP_RPFILTER", "", "sysctl net.ipv4.conf.eth1.rp_filter"),
        ("IP_RPFILTER", "", "`ip route get 10.1.0.2`"),
        ("IP_INADDRERRORS", "ip_error+0x9", "net.ipv4.ip_forward"),
        ("IP_INNOROUTES", "ip_error+0x9", "`ip route get 192.0.2.7 from 10.1.0.2 iif eth1`"),
        ("IP_INHDR", "ip_forward+0x31", "its TTL ended"),
        ("PKT_TOO_BIG", "ip_forward+0x77", "do not fit the MTU of eth9"),
        ("NEIGH_FAILED", "arp_error_report+0x3", "192.0.2.7 does not answer ARP on eth9"),
        ("NO_SOCKET", "__udp4_lib_rcv+0x3", "nothing listens on 192.0.2.7:53 (UDP)"),
        ("TCP_CSUM", "tcp_v4_rcv+0x3", "bad TCP checksum from 10.1.0.2"),
        ("SOCKET_RCVBUFF", "udp_queue_rcv_one_skb+0x3", "receive buffer is full"),
        ("QDISC_DROP", "__dev_queue_xmit+0x3", "`tc -s qdisc show dev eth9`"),
        ("NETFILTER_DROP", "nf_hook_slow+0x3", "no traced rule did: conntrack"),
        ("NOT_SPECIFIED", "ip_error+0x9", "blackhole, unreachable or prohibit"),
        ("NOT_SPECIFIED", "ip_rcv_finish_core.constprop.0+0x1d2", "martian"),
        ("IP_LOCAL_SOURCE", "ip_rcv_finish_core+0x1d2", "martian source: 10.1.0.2"),
        ("FRAG_REASM_TIMEOUT", "ip_expire+0x1", "reassembly timed out"),
        (None, "ip_expire+0x1", "reassembly timed out"),
        (None, "ip_rcv_finish_core+0x1d2", "reverse path filter of eth1 does not expect"),
        (None, "ip_forward+0x1", "its TTL ended, or 84 bytes do not fit the MTU of eth9"),
        (None, "br_handle_frame+0x1 [bridge]", "`bridge link`"),
        (None, "veth_xmit+0x1 [veth]", "other end of eth9"),
        (None, "nf_conntrack_in+0x1 [nf_conntrack]", "conntrack -S"),
        (None, "odd_function+0x1", "the kernel gives no reason; the place and the stack are all"),
        (None, None, "neither reason nor place is known"),
        ("A_NEW_ONE", "odd_function+0x1", "no more is known here"),
    ],
)
def test_a_drop_is_explained(reason: str | None, place: str | None, words: str) -> None:
    # The outgoing device is known where the packet was on its way out.
    out = "eth9" if "eth9" in words else None
    assert words in explain(dropped(reason, place, out=out))


def test_what_freed_a_packet_is_not_what_dropped_it() -> None:
    # GIVEN a queue that drops a list of packets, as the place says, on a kernel without reasons
    stack = ("kfree_skb_list+0x1e", "__dev_queue_xmit+0x9", "ip_finish_output2+0x1")
    row = dropped(None, "kfree_skb_list+0x1e", out="eth9", aside=Aside(stack=stack))
    assert "the queue of eth9 did not take it" in explain(row)


def test_commands_are_for_the_packets_namespace() -> None:
    sentence = explain(dropped("IP_RPFILTER", "ip_rcv_finish_core+0x1"), "router")
    assert "`ip -n router route get 10.1.0.2`" in sentence
    assert "`ip netns exec router ss -anu`" in explain(dropped("NO_SOCKET", ""), "router")
    for name in ("init", "a b; reboot", "-x", "$(reboot)", None):
        assert "`ip route get 10.1.0.2`" in explain(dropped("IP_RPFILTER", ""), name)


def test_ipv6_has_its_own_settings() -> None:
    row = replace(dropped("NEIGH_QUEUEFULL", ""), dst=IPV6.dst, src=IPV6.src, family=6, out="eth2")
    sentence = explain(row)
    assert "net.ipv6.neigh.eth2.unres_qlen_bytes" in sentence
    assert "does not answer ND" in sentence


def test_every_sentence_can_be_filled_and_is_one_line() -> None:
    sentences = [*REASONS.values(), *BY_FUNCTION.values(), *BY_BOTH.values()]
    known = [(reason, "") for reason in REASONS]
    known += [("", f"{place}+0x1") for place in (*BY_FUNCTION, *WITHOUT_REASONS)]
    known += [(reason, f"{place}+0x1") for reason, place in BY_BOTH]
    for reason, place in known:
        for row in (dropped(reason, place), dropped(reason, place, src="", dst="", in_=None)):
            text = explain(row)
            assert text
            assert "{" not in text
            assert "None" not in text
            assert text.count("`") % 2 == 0
            assert text.isprintable()
    for text in sentences:
        assert not re.search(r"[.]$", text)


def test_hostile_names_stay_what_they_are() -> None:
    text = explain(dropped("IP_RPFILTER", "", in_="{src}%s"))
    assert "on {src}%s does not expect" in text


@pytest.mark.parametrize(
    ("station", "words"),
    [
        ("received", "received on eth1"),
        ("forwarded", "forwarded from eth1 to eth2"),
        ("sent", "handed to eth2"),
        ("delivered", "delivered to a socket on 192.0.2.7:53"),
        ("routed", "routed via 10.9.0.1 on eth2, table main"),
        ("queued", "waits for the link-layer address of 10.9.0.1 on eth2 (INCOMPLETE)"),
        ("99", "unknown station 99"),
    ],
)
def test_a_station_is_told(station: str, words: str) -> None:
    aside = Aside(
        route_table=254,
        route_type=1,
        gateway=bytes([10, 9, 0, 1]) + bytes(12),
        gateway_family=2,
        neighbour_state=1,
        flags=record.STATION_F_ROUTE | record.STATION_F_NEIGHBOUR,
    )
    assert explain(replace(LOST, station=station, out="eth2", aside=aside)) == words


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (Owner(1234, "nginx", 0), "nginx (pid 1234)"),
        (Owner(1234, "nginx", 4), "nginx (pid 1234 and 4 more)"),
        (Owner(1234, "", 0), "a process (pid 1234)"),
    ],
)
def test_a_delivered_packet_has_the_process_that_got_it(owner: Owner, words: str) -> None:
    row = replace(LOST, station="delivered", aside=Aside(owner=owner))
    assert explain(row) == f"delivered to {words} on 192.0.2.7:53"


def test_what_is_not_known_of_route_and_neighbour_is_left_out() -> None:
    assert (route(None), neighbour(None)) == ("", "")
    assert (route(Aside()), neighbour(Aside())) == ("", "")
    aside = Aside(route_type=7, route_table=1000, flags=3)
    assert (route(aside), neighbour(aside)) == ("unreachable, table 1000", "NONE")
    assert explain(replace(LOST, station="routed")) == "routed"
    assert explain(PLAIN) == ""


def test_functions_are_read_from_places() -> None:
    assert function("ip_rcv_finish_core.constprop.0+0x1d2") == "ip_rcv_finish_core"
    assert function("br_forward+0x1/0x20 [bridge]") == "br_forward"
    assert function("") == ""
    assert is_netfilter("NETFILTER_DROP", "odd")
    assert is_netfilter("NOT_SPECIFIED", "nf_hook_slow+0x1")
    assert not is_netfilter("NO_SOCKET", "nf_hook_slow+0x1")
    assert not is_netfilter("", "nf_hook_slowest+0x1")
