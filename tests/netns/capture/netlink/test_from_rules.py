# SPDX-License-Identifier: GPL-2.0-only
"""--from-rules over netlink: only what rules mark, and no table of ipttrace."""

from __future__ import annotations

import json
from pathlib import Path

from tests.netns.loopback import LEGACY, TABLES, LoopbackNamespace
from tests.program import Command

COUNT = 7
TRACE = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp --dport 9 -j TRACE
COMMIT
"""


def traced(folder: Path, namespace: LoopbackNamespace, rows: int) -> list[dict[str, object]]:
    """The rows of COUNT datagrams, in order; nft lists only the tables that were there."""
    where = ["--engine", "netlink", "--netns", namespace.name, "--from-rules"]
    how = ["--format", "jsonl", "--count", str(rows), "--ready-file", str(folder / "ready")]
    with Command(folder, ["print", *where, *how]) as command:
        command.wait_ready()
        before = namespace.counted()
        namespace.send(COUNT)
        lines = command.read_lines(rows)
        assert namespace.tables() == TABLES
        assert namespace.counted() - before == COUNT
    return [json.loads(line) for line in lines]


def test_packets_are_traced_from_the_rule_that_marks_them(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    # GIVEN a rule that marks packets behind another one
    namespace.run("nft", "add", "rule", "ip", "t", "out", "meta", "nftrace", "set", "1")
    rows = traced(tmp_path, namespace, 2 * COUNT)
    # THEN each packet's path begins there
    out = [row for row in rows if row["chain"] == "out"]
    assert len(out) == COUNT
    for row in out:
        path = row["path"]
        assert isinstance(path, list)
        assert [(one["rulenum"], one["match"]) for one in path] == [(2, "rule"), (3, "policy")]
    # Over netlink a packet of lo that comes back is another one.
    assert len({row["journey"] for row in rows}) == 2 * COUNT


def test_packets_of_the_target_trace_are_traced(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    # GIVEN another user's TRACE rule in legacy tables
    namespace.run("iptables-legacy-restore", text=LEGACY)
    namespace.run("iptables-legacy-restore", "--noflush", text=TRACE)
    rows = traced(tmp_path, namespace, 4 * COUNT)
    # THEN the tables behind it report the packets; nftables does not, without a rule of its own
    assert {(row["hook"], row["table"]) for row in rows} == {
        ("OUTPUT", "raw"),
        ("OUTPUT", "filter"),
        ("PREROUTING", "raw"),
        ("INPUT", "filter"),
    }
