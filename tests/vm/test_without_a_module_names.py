# SPDX-License-Identifier: GPL-2.0-only
"""Names of nftables that are longer than a record of the BPF engine.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import run_in, socket_in
from tests.vm.conftest import SHARED
from tests.vm.live import live
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

COUNT = 23
# nft allows 128 bytes; these begin with the same 100.
BEGIN = "n" * 100
TABLE, BASE, FIRST, SECOND = (BEGIN + end for end in ("table", "base", "first", "second"))
RULES = f"""table inet {TABLE} {{
    chain {FIRST} {{
        udp dport 53 counter
        jump {SECOND}
        udp dport 54 counter
    }}
    chain {SECOND} {{
        udp dport {{ 53, 54 }} counter
    }}
    chain {BASE} {{
        type filter hook output priority 10; policy accept;
        meta l4proto udp counter goto {FIRST}
    }}
}}
"""


@pytest.mark.parametrize("engine", ["bpf", "netlink"])
def test_rows_have_the_whole_names(engine: str, tmp_path: Path) -> None:
    with Plain() as plain, socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind((LOOPBACK[4], 53))
        heard.settimeout(PATIENCE)
        # GIVEN rules in chains whose names differ in their last bytes only
        run_in(plain.name, ["nft", "-f", "-"], text=RULES)
        one = live(plain, tmp_path / "ready", engine=engine)
        # WHEN packets meet them
        with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(COUNT):
                sender.sendto(b"x", (LOOPBACK[4], 53))
                heard.recv(64)
        rows = [row for row in one.finish() if row.hook == "OUTPUT"]
        listed = json.loads(plain.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    # THEN each row has the whole names, and all rules' numbers and texts
    assert len(rows) == COUNT
    assert {row.table for row in rows} == {TABLE}
    assert {row.chain for row in rows} == {BASE}
    assert all(row.rule for row in rows if row.match == "rule")
    # AND each rule was hit as often as nft has counted
    steps = Counter((s.chain, s.rulenum) for row in rows for s in row.path if s.match == "rule")
    numbers: Counter[str] = Counter()
    for item in listed:
        if rule := item.get("rule"):
            numbers[rule["chain"]] += 1
            counted = [part["counter"]["packets"] for part in rule["expr"] if "counter" in part]
            expected = counted[0] if counted else COUNT
            assert steps[rule["chain"], numbers[rule["chain"]]] == expected, rule
