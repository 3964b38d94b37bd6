# SPDX-License-Identifier: GPL-2.0-only
"""What rows say of a packet's bytes, wherever the kernel keeps them."""

from __future__ import annotations

import socket

import numpy as np

from ipttrace.lab.network.ns import run, run_in, socket_in
from tests.vm.conftest import SHARED, captured
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain, raw_and_filter

pytestmark = SHARED

RECORDED = 128  # bytes of a packet: IPTTRACE_PACKET_LEN of bpf/record.h
FEW = 5


def test_the_data_of_a_tcp_segment_is_recorded_although_it_is_in_pages() -> None:
    with Plain() as plain:
        plain.load(raw_and_filter(""), 4)
        with (
            socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM) as listener,
            socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM) as client,
        ):
            listener.bind((LOOPBACK[4], 7002))
            listener.listen()
            with captured("tcp dst port 7002 and greater 200", netns=plain.name) as capture:
                # GIVEN a segment, of which only the headers are in the skb's linear part
                client.connect((LOOPBACK[4], 7002))
                server, _ = listener.accept()
                client.sendall(b"data" * 250)
                with server:
                    assert server.recv(100)
                capture.wait_rows(4)
        # THEN its rows have as many bytes as fit, up to the last
        assert len(capture.rows) >= 4
        store = capture.trace.store
        assert set(store.column("caplen").tolist()) == {RECORDED}
        assert all(bytes(packet).endswith(b"datadata") for packet in store.column("packet"))


def test_a_packet_whose_vlan_tag_was_removed_has_none() -> None:
    # GIVEN two namespaces with a VLAN between them
    with Plain("ipt-tag-a") as one, Plain("ipt-tag-b") as other:
        run(["ip", "link", "add", "t0", "netns", one.name, "type", "veth", "peer", "name", "t0",
             "netns", other.name])  # fmt: skip
        for plain, address in ((one, "10.9.0.1/24"), (other, "10.9.0.2/24")):
            for words in (
                "link set t0 up",
                "link add link t0 name t0.10 type vlan id 10",
                f"addr add {address} dev t0.10",
                "link set t0.10 up",
            ):
                run_in(plain.name, ["ip", *words.split()])
            plain.load(raw_and_filter(""), 4)
        kind = (socket.AF_INET, socket.SOCK_DGRAM)
        with socket_in(other.name, *kind) as listener, socket_in(one.name, *kind) as sender:
            listener.bind(("10.9.0.2", 7002))
            listener.settimeout(PATIENCE)
            with captured("udp dst port 7002", netns=other.name) as capture:
                # WHEN packets arrive in it
                for _ in range(FEW):
                    sender.sendto(b"x", ("10.9.0.2", 7002))
                    assert listener.recv(10)
                capture.wait_rows(2 * FEW)
        # THEN their rows are of the untagged device, and without a tag
        assert {row.in_ for row in capture.rows} == {"t0.10"}
        assert not np.any(capture.trace.store.column("vlan_tci"))
