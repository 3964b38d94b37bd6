# SPDX-License-Identifier: GPL-2.0-only
"""--from-rules traces what the user's rules mark, and ipttrace marks nothing itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ipttrace.lab.network import read_counters
from ipttrace.lab.network.ns import run_in
from tests.vm.breakpoints import send, ways
from tests.vm.conftest import SHARED
from tests.vm.live import live
from tests.vm.plain import Plain

pytestmark = SHARED

FEW, OTHER = 23, 11
LEGACY = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp
-A OUTPUT -p udp -m udp --dport 53 -j TRACE
-A OUTPUT -p udp
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -j ACCEPT
COMMIT
"""
BY_TRACE = {
    ("OUTPUT", "raw", "OUTPUT:3 OUTPUT:4/policy", "ACCEPT"): FEW,
    ("OUTPUT", "filter", "OUTPUT:1/policy", "ACCEPT"): FEW,
    ("PREROUTING", "raw", "PREROUTING:1/policy", "ACCEPT"): FEW,
    ("INPUT", "filter", "INPUT:1", "ACCEPT"): FEW,
}
NATIVE = """\
table ip native {
    chain deep {
        udp dport 53 counter
        udp dport 53 meta nftrace set 1
        counter
    }
    chain out {
        type filter hook output priority 0; policy accept;
        jump deep
        udp dport 53 counter
    }
    chain in {
        type filter hook input priority 0; policy accept;
        udp dport 53 counter accept
    }
}
"""
BY_NFTRACE = {
    ("OUTPUT", "native", "deep:2 deep:3 deep:4/return out:2 out:3/policy", "ACCEPT"): FEW,
    ("INPUT", "native", "in:1", "ACCEPT"): FEW,
}


@pytest.mark.parametrize("engine", ["kernel", "bpf", "netlink"])
def test_packets_of_trace_rules_are_traced(engine: str, tmp_path: Path) -> None:
    with Plain() as plain:
        plain.load(LEGACY, 4)
        one = live(plain, tmp_path / "ready", engine=engine, from_rules=True)
        # WHEN packets are sent, of which some hit TRACE
        send(plain, 4, 53, FEW)
        send(plain, 4, 99, OTHER)
        one.wait_rows(4 * FEW)
        rows = one.finish()
        # THEN these have rows, from the next rule on
        told = {key[:3]: count for key, count in ways(rows).items()}
        assert told == {key[:3]: count for key, count in BY_TRACE.items()}
        counted = read_counters(plain.run("iptables-legacy-save", "-c").stdout)
        assert counted["raw", "OUTPUT", 2][0] == FEW
        assert counted["raw", "OUTPUT", 3][0] == FEW + OTHER


@pytest.mark.parametrize("engine", ["bpf", "netlink"])
def test_packets_that_nftables_marks_are_traced(engine: str, tmp_path: Path) -> None:
    with Plain() as plain:
        run_in(plain.name, ["nft", "-f", "-"], text=NATIVE)
        one = live(plain, tmp_path / "ready", engine=engine, from_rules=True)
        send(plain, 4, 53, FEW)
        send(plain, 4, 99, OTHER)
        # THEN ipttrace has no table of its own
        tables = plain.run("nft", "list", "tables").stdout
        one.wait_rows(2 * FEW)
        rows = one.finish()
        assert ways(rows) == BY_NFTRACE
        assert tables == "table ip native\n"
        assert Counter(row.dport for row in rows) == {53: 2 * FEW}


def test_a_filter_cannot_be_set_while_rules_mark(tmp_path: Path) -> None:
    with Plain() as plain:
        plain.load(LEGACY, 4)
        one = live(plain, tmp_path / "ready", engine="kernel", from_rules=True)
        one.agent.send(b'{"cmd": "filter", "expr": "udp"}')
        one.wait(lambda: bool(one.trace.notes), "the refusal")
        assert "there is no filter" in str(one.trace.notes)
        one.finish()
