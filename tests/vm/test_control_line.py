# SPDX-License-Identifier: GPL-2.0-only
"""Disarmed, armed again, given another filter, stopped by its budget: all in one stream.

The truth is what was sent, and what iptables itself has counted meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.stream.frames import Kind
from tests.vm.commands import Command
from tests.vm.conftest import kprobes
from tests.vm.forked import until
from tests.vm.live import balanced, live
from tests.vm.plain import LOOPBACK, Plain

RULES = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport {port} -m comment --comment "{name}" -j ACCEPT
COMMIT
"""
WAY = (("raw", "OUTPUT"), ("filter", "OUTPUT"), ("raw", "PREROUTING"), ("filter", "INPUT"))
CALLS = len(WAY)


@pytest.fixture
def plain() -> Iterator[Plain]:
    """A namespace in which somebody listens, so that nothing is answered."""
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with (
        Plain() as namespace,
        socket_in(namespace.name, *kind) as sink,
        socket_in(namespace.name, *kind) as other,
    ):
        sink.bind((LOOPBACK[4], 9))
        other.bind((LOOPBACK[4], 53))
        namespace.load(RULES.format(port=9, name="first"), 4)
        yield namespace


def send(plain: Plain, count: int, port: int = 9) -> None:
    assert traffic.udp(plain.name, LOOPBACK[4], port, count).sent == count


def passed(plain: Plain) -> int:
    """Datagrams that iptables has counted in raw OUTPUT."""
    return plain.counters(4)["raw", "OUTPUT", 0][0]


def test_what_is_sent_while_disarmed_is_no_row_and_all_else_is(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN an agent that is disarmed and armed again, three times
    one = live(plain, tmp_path / "ready")
    counted = []
    with one.agent:
        due = 0
        for turn, (seen, unseen) in enumerate(((23, 29), (31, 37), (41, 43))):
            # WHEN datagrams of sizes of their own are sent while it is armed, and while not
            before = passed(plain)
            send(plain, seen)
            due += CALLS * seen
            one.wait_rows(due)
            one.tell("disarm", "disarmed")
            counted.append(passed(plain) - before)
            # THEN disarmed means that nothing is probed but, for a moment, log lines
            assert not [line for line in kprobes() if "t_do_table" in line]
            assert until(lambda: not kprobes())
            balanced(one.trace.books)
            assert sum(one.trace.books["lost"]) == one.trace.books["missed"] == 0
            assert one.trace.books["matched"] == one.trace.books["delivered"][0] == due
            send(plain, unseen)
            assert passed(plain) - before == seen + unseen
            if turn < 2:
                one.tell("arm", "armed")
                assert kprobes()
        rows = one.finish()
        frames = one.agent.frames
    # AND what was sent while it was armed is there, all of it and nothing else
    assert counted == [23, 31, 41]
    assert len(rows) == due == CALLS * (23 + 31 + 41)
    tables = Counter((row.table, row.hook) for row in rows)
    assert tables == dict.fromkeys(WAY, 23 + 31 + 41)
    # AND no call id comes twice in the stream
    calls = np.concatenate([frame.records["call"] for frame in frames if frame.kind == Kind.EXIT])
    assert len(np.unique(calls)) == len(calls) == due
    assert one.trace.summary()["incomplete"] == 0
    # AND each datagram is one journey of four rows
    journeys = one.trace.store.column("journey")
    assert set(Counter(journeys.tolist()).values()) == {CALLS}
    # AND the books never went backwards
    for name in ("calls", "matched", "flipped", "silenced"):
        values = [books[name] for books in one.states]
        assert values == sorted(values), name


def test_calls_inside_of_calls_keep_their_parents_over_armings(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN a rule whose answer is sent from inside the call
    run_in(plain.name, ["sysctl", "-qw", "net.ipv4.icmp_ratemask=0"])
    plain.load("*filter\n-A OUTPUT -p udp --dport 99 -j REJECT\nCOMMIT\n", 4)
    one = live(plain, tmp_path / "ready")
    with one.agent:
        for count in (5, 7):
            if count == 7:
                one.tell("disarm", "disarmed")
                one.tell("arm", "armed")
            before = one.trace.rows
            traffic.udp(plain.name, LOOPBACK[4], 99, count)
            # raw and filter OUTPUT of it; and all four of its answer, at least
            one.wait_rows(before + 6 * count)
        one.finish()
        entries = [frame.records for frame in one.agent.frames if frame.kind == Kind.ENTRY]
    # THEN each answer's parent is a call of the same arming
    calls = np.concatenate([part["call"] for part in entries])
    parents = np.concatenate([part["parent"] for part in entries])
    inside = parents != 0
    assert inside.sum() >= 12
    assert np.isin(parents[inside], calls).all()
    assert len(np.unique(calls)) == len(calls)


def test_the_filter_is_changed_on_the_control_line_and_outlives_a_disarm(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN an agent that traces everything
    one = live(plain, tmp_path / "ready")
    with one.agent:
        send(plain, 7, 9)
        one.wait_rows(CALLS * 7)
        # WHEN a filter is pushed into the kernel
        one.tell("filter", "armed", expr="udp dst port 53")
        send(plain, 11, 9)
        send(plain, 13, 53)
        one.wait_rows(CALLS * (7 + 13))
        # AND one that is none
        one.agent.tell(b'{"cmd": "filter", "expr": "udp prot 9"}')
        one.wait(lambda: any(level == "error" for level, _ in one.trace.notes), "an error")
        send(plain, 17, 9)
        send(plain, 19, 53)
        one.wait_rows(CALLS * (7 + 13 + 19))
        # AND it is armed again, where all is refused by now, and then set free
        one.tell("disarm", "disarmed")
        one.tell("arm", "armed")
        send(plain, 23, 9)
        send(plain, 29, 53)
        one.wait_rows(CALLS * (7 + 13 + 19 + 29))
        one.tell("disarm", "disarmed")
        one.tell("filter", "disarmed", expr="udp dst port 9")
        one.tell("arm", "armed")
        send(plain, 31, 9)
        one.wait_rows(CALLS * (7 + 13 + 19 + 29 + 31))
        rows = one.finish()
    # THEN rows are those that each filter took; libpcap's words were passed on
    ports = Counter(row.dport for row in rows)
    assert ports == {9: CALLS * (7 + 31), 53: CALLS * (13 + 19 + 29)}
    errors = [text for level, text in one.trace.notes if level == "error"]
    assert len(errors) == 1
    assert errors[0].endswith("syntax error, at character 5")
    assert one.trace.books["expr"] == "udp dst port 9"


def test_rules_that_were_changed_while_disarmed_are_not_taken_for_the_old_ones(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN rows with their rules' texts
    one = live(plain, tmp_path / "ready")

    def texts() -> list[str | None]:
        store = one.trace.store
        rows = store.rows(range(store.first, store.end))
        return [row.rule for row in rows if (row.table, row.hook) == ("filter", "INPUT")]

    with one.agent:
        send(plain, 3)
        one.wait_rows(CALLS * 3)
        one.wait(lambda: None not in texts(), "the rules")
        # WHEN the rules are changed while nobody watches, and rows come again
        one.tell("disarm", "disarmed")
        plain.load(RULES.format(port=9, name="second"), 4)
        one.tell("arm", "armed")
        send(plain, 5)
        one.wait_rows(CALLS * 8)
        one.wait(lambda: None not in texts(), "the new rules")
        # AND changed again while armed
        plain.load(RULES.format(port=9, name="third"), 4)
        send(plain, 7)
        one.wait_rows(CALLS * 15)
        one.wait(lambda: None not in texts(), "the newest rules")
        one.finish()
    # THEN each row has the rule that it hit
    names = [next(n for n in ("first", "second", "third") if n in str(t)) for t in texts()]
    assert names == ["first"] * 3 + ["second"] * 5 + ["third"] * 7


def test_stop_after_disarms_and_each_arming_may_spend_as_much(plain: Plain, tmp_path: Path) -> None:
    one = live(plain, tmp_path / "ready", stop_after=40)
    with one.agent:
        for turn in (1, 2):
            # GIVEN fewer rows than the budget
            before = one.trace.rows
            send(plain, 9)
            one.wait_rows(before + CALLS * 9)
            assert one.trace.books["state"] == "armed"
            # WHEN the budget is used up
            send(plain, 3)
            one.wait(lambda: one.trace.books["state"] == "disarmed", "the end of the budget")
            # THEN it stays so until it is armed again
            send(plain, 5)
            assert not [line for line in kprobes() if "t_do_table" in line]
            assert one.trace.rows >= before + 40
            if turn == 1:
                one.tell("arm", "armed")
        one.finish()
    said = [text for _, text in one.trace.notes if text.startswith("disarmed after")]
    assert len(said) == 2


def test_print_ends_in_order_with_the_row_that_until_waits_for(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN print that waits for a datagram to port 53
    arguments = ["print", "--netns", plain.name, "--format", "jsonl", "--until", "dport=53"]
    ready = ["--ready-file", str(tmp_path / "ready")]
    with Command(tmp_path, [*arguments, *ready]) as command:
        command.wait_ready()
        # WHEN others come before it, and it and more after them
        send(plain, 5, 9)
        send(plain, 3, 53)
        status, out = command.finish()
        said = command.stderr()
    # THEN the first row of it is the last that is shown
    ports = [json.loads(line)["dport"] for line in out.splitlines()]
    assert ports == [9] * (CALLS * 5) + [53]
    assert (status, len(said)) == (0, 1)
    assert said[0].startswith(f"rows={CALLS * 5 + 1} ")


def test_an_agent_that_is_told_to_end_while_disarmed_ends_in_order(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN an agent that was armed twice and is disarmed
    one = live(plain, tmp_path / "ready")
    with one.agent:
        one.tell("disarm", "disarmed")
        one.tell("arm", "armed")
        one.tell("disarm", "disarmed")
        # WHEN it is told to end
        os.kill(one.agent.pid, signal.SIGTERM)
        one.agent.drain()
        one.feed()
        # THEN it does, in order
        assert one.agent.wait() == 0
    assert one.trace.ended is not None
    assert one.trace.ended["state"] == "disarmed"
    balanced(one.trace.books)
