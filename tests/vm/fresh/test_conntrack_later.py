# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine sees connections even if conntrack is loaded after it has started."""

from __future__ import annotations

import socket
from pathlib import Path

from ipttrace.lab.network.ns import run_in, socket_in
from tests.vm.live import live
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

COUNT = 23
CONNTRACK = "nf_conntrack"
BEFORE = """table inet native {
    chain out {
        type filter hook output priority 10; policy accept;
        udp dport 53 counter
    }
}
"""
AFTER = "add rule inet native out udp dport 53 ct state new counter"


def loaded(module: str) -> bool:
    return Path("/sys/module", module).exists()


def test_connections_are_seen_though_conntrack_came_later(tmp_path: Path) -> None:
    # GIVEN a kernel without conntrack, and an agent that traces
    with Plain() as plain, socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind((LOOPBACK[4], 53))
        heard.settimeout(PATIENCE)
        run_in(plain.name, ["nft", "-f", "-"], text=BEFORE)
        one = live(plain, tmp_path / "ready", engine="bpf")
        assert not loaded(CONNTRACK)

        def send() -> None:
            for _ in range(COUNT):
                with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"x", (LOOPBACK[4], 53))
                    heard.recv(64)

        send()
        one.wait_rows(COUNT)
        # WHEN a rule needs conntrack, and more packets are sent, each of a connection of its own
        plain.run("nft", *AFTER.split())
        assert loaded(CONNTRACK)
        send()
        rows = [row for row in one.finish() if row.hook == "OUTPUT"]
        listed = plain.run("nft", "list", "ruleset").stdout
    # THEN the rule has counted them, and rows have their connections
    assert f"ct state new counter packets {COUNT} " in listed
    assert len(rows) == 2 * COUNT
    assert {row.ct_state for row in rows[:COUNT]} == {None}
    assert {(row.ct_state, row.ct_orig_dport) for row in rows[COUNT:]} == {("NEW", 53)}
    assert not any("conntrack" in text for _, text in one.trace.notes)
