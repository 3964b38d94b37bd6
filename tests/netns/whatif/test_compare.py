# SPDX-License-Identifier: GPL-2.0-only
"""The packets of a recording that meet another fate with other rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ipttrace.whatif.packet.recorded import read_trace
from tests.netns.whatif.copies import ROUTER, need_namespaces, write
from tests.paths import DATA, PROJECT

OLD = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 80,443,8080 -j ACCEPT
-A FORWARD -p udp -j ACCEPT
COMMIT
"""
RECORDING = str(DATA / "lab.iptr")
NEW_UDP = ["--query", "netns_name=ipt-router and in=lan0 and family=4 and proto=UDP"]


def compare(folder: Path, old: str, new: str, *arguments: str) -> tuple[int, str, str]:
    need_namespaces()
    for name, text in (("old", old), ("new", new)):
        (folder / name).write_text(text)
    argv = [sys.executable, "-m", "ipttrace", "compare", "old", "new", "--packets", RECORDING]
    done = subprocess.run(
        [*argv, "--network", write(folder, ROUTER), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    return done.returncode, done.stdout, done.stderr


def test_packets_whose_fate_differs_are_listed_with_their_counts(folder: Path) -> None:
    # GIVEN the packets of a recording, counted here, and rules that differ for name servers
    store = read_trace(RECORDING).store
    rows = [
        row
        for row in store.rows(range(store.first, store.end))
        if (row.in_, row.proto, row.family, row.hook) == ("lan0", "UDP", 4, "PREROUTING")
    ]
    packets = {(row.netns, row.journey): row for row in rows}
    ports = Counter(row.dport for row in packets.values() if row.ct_state != "ESTABLISHED")
    port = 53
    # WHEN they are compared
    rule = f"-A FORWARD -p udp -m udp --dport {port} -j DROP\n"
    new = OLD.replace("-A FORWARD -p udp", f"{rule}-A FORWARD -p udp")
    status, output, errors = compare(folder, OLD, new, *NEW_UDP, "--format", "jsonl")
    # THEN only those to that port differ
    assert (status, errors) == (3, "")
    found = json.loads(output)
    assert found["packets"] + found["unsent"] == len(packets)
    assert found["differences"]
    for one in found["differences"]:
        assert f":{port} in lan0" in one["packet"]
        assert one["old"].startswith("accepted: leaves wan0")
        assert one["new"] == f"dropped: by filter FORWARD rule 3: {rule[11:].strip()}"
    assert sum(one["count"] for one in found["differences"]) == ports[port] > 1


def test_the_same_rules_in_other_words_are_no_difference(folder: Path) -> None:
    new = OLD.replace("-p udp -j", "-p 17 -m comment --comment x -j")
    status, output, errors = compare(folder, OLD, new, *NEW_UDP)
    assert (status, errors) == (0, "")
    assert output.splitlines()[0].startswith("0 of ")


@pytest.mark.parametrize(
    ("new", "more", "message"),
    [
        ("x", [], "ipttrace: new: not the output of iptables-save"),
        (OLD, ["--packets", "old"], "ipttrace: old: "),
        (OLD, ["--query", "x=="], "ipttrace: "),
        (OLD.replace("-p udp", "-m nix"), [], "ipttrace: new: iptables-legacy-restore refuses"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    folder: Path, new: str, more: list[str], message: str
) -> None:
    status, _, errors = compare(folder, OLD, new, *more)
    assert status in (1, 2)
    assert errors.startswith(message)
    assert "Traceback" not in errors
