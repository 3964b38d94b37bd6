# SPDX-License-Identifier: GPL-2.0-only
"""While legacy rules are replaced, a row has the text of the rule that its packet met, or none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.netns.netlink_lab import Row, Tracer, tracing
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace

FIRST = 20_000  # port of the first generation's packet
LAST = 9  # of packets behind all replacements
SAME = "-p udp -m udp --dport 7 -m comment --comment same -j ACCEPT"
PORT_OF_EACH = "-p udp -m udp --dport 20000:60000"


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        if "legacy" not in one.run("iptables-legacy", "-V", check=False):
            pytest.skip("no iptables-legacy")
        yield one


class Replacer:
    """Replaces rules, and sends a packet under each generation of them."""

    def __init__(self, namespace: RulesetNamespace) -> None:
        self._namespace = namespace
        with namespace.enter():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.load("first")

    def close(self) -> None:
        self.socket.close()

    def load(self, comment: str, target: str = "ACCEPT") -> None:
        """A chain whose rule has a comment, and one that is always the same."""
        self._namespace.run(
            "iptables-legacy-restore",
            input=f"*filter\n:SAME - [0:0]\n:OFTEN - [0:0]\n-A INPUT -j SAME\n-A INPUT -j OFTEN\n"
            f"-A SAME {SAME}\n"
            f"-A OFTEN {PORT_OF_EACH} -m comment --comment {comment} -j {target}\n"
            f"-A OFTEN -p udp -m udp --dport {LAST} -m comment --comment {comment} -j ACCEPT\n"
            "COMMIT\n",
        )

    def send(self, port: int) -> None:
        self.socket.sendto(b"x", ("127.0.0.1", port))


def settle(replacer: Replacer, tracer: Tracer) -> None:
    """Waits until rows have texts of the newest rules."""
    known = False
    while not known:
        count = len(tracer.rows)
        replacer.send(LAST)
        tracer.wait(count + 1)
        known = bool(texts(tracer.rows[count:], LAST))


def texts(rows: Iterable[Row], *ports: int) -> list[tuple[int, str]]:
    """Ports of packets and the comment of the rule of OFTEN that they hit, where it is known."""
    return [
        (row["dport"], row["rule"].split("--comment ")[1].split()[0])
        for row in rows
        if row["chain"] == "OFTEN"
        and row["rule"] is not None
        and (not ports or row["dport"] in ports)
    ]


def test_a_text_is_of_the_generation_in_force_when_the_packet_came(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with (
        closing(Replacer(namespace)) as replacer,
        tracing(tmp_path, os.path.basename(namespace.path), "udp") as tracer,
    ):
        for generation in range(150):
            replacer.load(f"g{FIRST + generation}", ("ACCEPT", "DROP")[generation % 2])
            replacer.send(FIRST + generation)
        settle(replacer, tracer)
        rows = [row for row in tracer.finish() if row["hook"] == "INPUT"]
    often = [row for row in rows if row["chain"] == "OFTEN" and row["dport"] != LAST]
    assert len(often) == 150
    # THEN each text is the right one, and so is each verdict
    assert [(port, text) for port, text in texts(often) if text != f"g{port}"] == []
    for row in often:
        assert row["verdict"] in (None, ("ACCEPT", "DROP")[row["dport"] % 2]), row


def test_rules_that_change_and_change_back_have_no_text_of_the_others(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with (
        closing(Replacer(namespace)) as replacer,
        tracing(tmp_path, os.path.basename(namespace.path), "udp") as tracer,
    ):
        # WHEN two tables of one size are loaded by turns, faster than they are read
        for turn in range(150):
            kind = turn % 2
            replacer.load(("even", "odds")[kind], ("ACCEPT", "DROP")[kind])
            replacer.send(FIRST + turn)
        settle(replacer, tracer)
        rows = [row for row in tracer.finish() if row["hook"] == "INPUT"]
    often = [row for row in rows if row["chain"] == "OFTEN" and row["dport"] != LAST]
    assert len(often) == 150
    assert [one for one in texts(often) if one[1] != ("even", "odds")[one[0] % 2]] == []
    for row in often:
        assert row["verdict"] in (None, ("ACCEPT", "DROP")[row["dport"] % 2]), row
    # AND the text that was known last is the right one
    assert {text for _, text in texts(rows, LAST)} == {"odds"}


def test_a_chain_that_stays_the_same_keeps_its_texts_while_others_are_replaced(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with (
        closing(Replacer(namespace)) as replacer,
        tracing(tmp_path, os.path.basename(namespace.path), "udp") as tracer,
    ):
        settle(replacer, tracer)
        # WHEN a packet meets the chain just behind each replacement
        for turn in range(30):
            count = len(tracer.rows)
            replacer.load(f"g{turn}")
            replacer.send(7)
            tracer.wait(count + 1)
        rows = [row for row in tracer.finish() if row["chain"] == "SAME"]
    # THEN the rule that stayed has its text, unless others took the lock at the same time
    assert len(rows) == 30
    known = [row["rule"] for row in rows if row["rule"] is not None]
    assert set(known) == {SAME}
    assert len(known) >= 10
