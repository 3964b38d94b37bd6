# SPDX-License-Identifier: GPL-2.0-only
"""Disarm, arm, another filter, a budget that is spent: all in one stream.

The truth is what was sent, and the counters of iptables.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import run_in
from ipttrace.stream.frames import Kind
from tests.program import Command
from tests.vm.conftest import SHARED, kprobes
from tests.vm.forked import until
from tests.vm.live import balanced, live
from tests.vm.plain import LOOPBACK, Plain, listening, raw_and_filter

pytestmark = SHARED

RULES = raw_and_filter(
    '-A INPUT -p udp -m udp --dport {port} -m comment --comment "{name}" -j ACCEPT'
)
HOOKS = (("raw", "OUTPUT"), ("filter", "OUTPUT"), ("raw", "PREROUTING"), ("filter", "INPUT"))
CALLS = len(HOOKS)


@pytest.fixture
def plain() -> Iterator[Plain]:
    with listening(RULES.format(port=9, name="first")) as namespace:
        yield namespace


def send(plain: Plain, count: int, port: int = 9) -> None:
    assert traffic.udp(plain.name, LOOPBACK[4], port, count).sent == count


def counted(plain: Plain) -> int:
    """Datagrams that iptables has counted in raw OUTPUT."""
    return plain.counters(4)["raw", "OUTPUT", 0][0]


def test_what_is_sent_while_armed_becomes_rows_and_nothing_else(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN an agent that is disarmed and armed again, three times
    one = live(plain, tmp_path / "ready")
    sent_armed = []
    with one.agent:
        due = 0
        for turn, (seen, unseen) in enumerate(((23, 29), (31, 37), (41, 43))):
            # WHEN different numbers of datagrams are sent while armed, and while disarmed
            before = counted(plain)
            send(plain, seen)
            due += CALLS * seen
            one.wait_rows(due)
            one.command("disarm", "disarmed")
            sent_armed.append(counted(plain) - before)
            # THEN while disarmed nothing is probed, except log lines for a moment
            assert not [line for line in kprobes() if "t_do_table" in line]
            assert until(lambda: not kprobes())
            balanced(one.trace.books)
            assert sum(one.trace.books["lost"]) == one.trace.books["missed"] == 0
            assert one.trace.books["matched"] == one.trace.books["delivered"][0] == due
            send(plain, unseen)
            assert counted(plain) - before == seen + unseen
            if turn < 2:
                one.command("arm", "armed")
                assert kprobes()
        rows = one.finish()
        frames = one.agent.frames
    # AND all rows are of what was sent while armed
    assert sent_armed == [23, 31, 41]
    assert len(rows) == due == CALLS * (23 + 31 + 41)
    tables = Counter((row.table, row.hook) for row in rows)
    assert tables == dict.fromkeys(HOOKS, 23 + 31 + 41)
    # AND no call id occurs twice in the stream
    calls = np.concatenate([frame.records["call"] for frame in frames if frame.kind == Kind.EXIT])
    assert len(np.unique(calls)) == len(calls) == due
    assert one.trace.summary()["incomplete"] == 0
    # AND each datagram is one journey of four rows
    journeys = one.trace.store.column("journey")
    assert set(Counter(journeys.tolist()).values()) == {CALLS}
    # AND no counter ever decreased
    for name in ("calls", "matched", "flipped", "silenced"):
        values = [books[name] for books in one.states]
        assert values == sorted(values), name


def test_nested_calls_have_parents_of_the_same_arming(plain: Plain, tmp_path: Path) -> None:
    # GIVEN a rule whose answer is sent from inside the call
    run_in(plain.name, ["sysctl", "-qw", "net.ipv4.icmp_ratemask=0"])
    plain.load("*filter\n-A OUTPUT -p udp --dport 99 -j REJECT\nCOMMIT\n", 4)
    one = live(plain, tmp_path / "ready")
    with one.agent:
        for count in (5, 7):
            if count == 7:
                one.command("disarm", "disarmed")
                one.command("arm", "armed")
            before = one.trace.rows
            traffic.udp(plain.name, LOOPBACK[4], 99, count)
            # Its calls in raw and filter OUTPUT, and at least four of its answer.
            one.wait_rows(before + 6 * count)
        one.finish()
        entries = [frame.records for frame in one.agent.frames if frame.kind == Kind.ENTRY]
    # THEN the parent of each answer's call is a call of the same arming
    calls = np.concatenate([part["call"] for part in entries])
    parents = np.concatenate([part["parent"] for part in entries])
    inside = parents != 0
    assert inside.sum() >= 12
    assert np.isin(parents[inside], calls).all()
    assert len(np.unique(calls)) == len(calls)


def test_the_filter_can_be_changed_and_survives_a_disarm(plain: Plain, tmp_path: Path) -> None:
    # GIVEN an agent that traces everything
    one = live(plain, tmp_path / "ready")
    with one.agent:
        send(plain, 7, 9)
        one.wait_rows(CALLS * 7)
        # WHEN the filter is changed while armed
        one.command("filter", "armed", expr="udp dst port 53")
        send(plain, 11, 9)
        send(plain, 13, 53)
        one.wait_rows(CALLS * (7 + 13))
        # AND a wrong filter is sent
        one.agent.send(b'{"cmd": "filter", "expr": "udp prot 9"}')
        one.wait(lambda: any(level == "error" for level, _ in one.trace.notes), "an error")
        send(plain, 17, 9)
        send(plain, 19, 53)
        one.wait_rows(CALLS * (7 + 13 + 19))
        # AND it is disarmed and armed again, and then the filter is changed while disarmed
        one.command("disarm", "disarmed")
        one.command("arm", "armed")
        send(plain, 23, 9)
        send(plain, 29, 53)
        one.wait_rows(CALLS * (7 + 13 + 19 + 29))
        one.command("disarm", "disarmed")
        one.command("filter", "disarmed", expr="udp dst port 9")
        one.command("arm", "armed")
        send(plain, 31, 9)
        one.wait_rows(CALLS * (7 + 13 + 19 + 29 + 31))
        rows = one.finish()
    # THEN the rows are those that matched the filter of the time, and the error is libpcap's
    ports = Counter(row.dport for row in rows)
    assert ports == {9: CALLS * (7 + 31), 53: CALLS * (13 + 19 + 29)}
    errors = [text for level, text in one.trace.notes if level == "error"]
    assert len(errors) == 1
    assert errors[0].endswith("syntax error, at character 5")
    assert one.trace.books["expr"] == "udp dst port 9"


def test_rules_changed_while_disarmed_do_not_change_the_texts_of_earlier_rows(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN rows with the texts of their rules
    one = live(plain, tmp_path / "ready")

    def texts() -> list[str | None]:
        store = one.trace.store
        rows = store.rows(range(store.first, store.end))
        return [row.rule for row in rows if (row.table, row.hook) == ("filter", "INPUT")]

    with one.agent:
        send(plain, 3)
        one.wait_rows(CALLS * 3)
        one.wait(lambda: None not in texts(), "the rules")
        # WHEN the rules are changed while disarmed, and rows come again
        one.command("disarm", "disarmed")
        plain.load(RULES.format(port=9, name="second"), 4)
        one.command("arm", "armed")
        send(plain, 5)
        one.wait_rows(CALLS * 8)
        one.wait(lambda: None not in texts(), "the new rules")
        # AND changed again while armed
        plain.load(RULES.format(port=9, name="third"), 4)
        send(plain, 7)
        one.wait_rows(CALLS * 15)
        one.wait(lambda: None not in texts(), "the newest rules")
        one.finish()
    # THEN each row has the text of the rule it hit
    names = [next(n for n in ("first", "second", "third") if n in str(t)) for t in texts()]
    assert names == ["first"] * 3 + ["second"] * 5 + ["third"] * 7


def test_stop_after_disarms_and_applies_anew_to_each_arming(plain: Plain, tmp_path: Path) -> None:
    one = live(plain, tmp_path / "ready", stop_after=40)
    with one.agent:
        for turn in (1, 2):
            # GIVEN fewer rows than the budget
            before = one.trace.rows
            send(plain, 9)
            one.wait_rows(before + CALLS * 9)
            assert one.trace.books["state"] == "armed"
            # WHEN the budget is spent
            send(plain, 3)
            one.wait(lambda: one.trace.books["state"] == "disarmed", "the end of the budget")
            # THEN it stays disarmed until it is armed again
            send(plain, 5)
            assert not [line for line in kprobes() if "t_do_table" in line]
            assert one.trace.rows >= before + 40
            if turn == 1:
                one.command("arm", "armed")
        one.finish()
    notes = [text for _, text in one.trace.notes if text.startswith("disarmed after")]
    assert len(notes) == 2


def test_print_ends_with_the_first_row_that_matches_until(plain: Plain, tmp_path: Path) -> None:
    # GIVEN print that waits for a datagram to port 53
    arguments = ["print", "--netns", plain.name, "--format", "jsonl", "--until", "dport=53"]
    ready = ["--ready-file", str(tmp_path / "ready")]
    with Command(tmp_path, [*arguments, *ready]) as command:
        command.wait_ready()
        # WHEN others are sent first, and then several to port 53
        send(plain, 5, 9)
        send(plain, 3, 53)
        status, out = command.finish()
        stderr = command.stderr()
    # THEN the first row with port 53 is the last row
    ports = [json.loads(line)["dport"] for line in out.splitlines()]
    assert ports == [9] * (CALLS * 5) + [53]
    assert (status, len(stderr)) == (0, 1)
    assert stderr[0].startswith(f"rows={CALLS * 5 + 1} ")


def test_a_signal_while_disarmed_ends_the_stream_in_order(plain: Plain, tmp_path: Path) -> None:
    # GIVEN a disarmed agent that was armed twice
    one = live(plain, tmp_path / "ready")
    with one.agent:
        one.command("disarm", "disarmed")
        one.command("arm", "armed")
        one.command("disarm", "disarmed")
        # WHEN it gets SIGTERM
        os.kill(one.agent.pid, signal.SIGTERM)
        one.agent.drain()
        one.feed()
        # THEN its stream ends in order
        assert one.agent.wait() == 0
    assert one.trace.ended is not None
    assert one.trace.ended["state"] == "disarmed"
    balanced(one.trace.books)
