# SPDX-License-Identifier: GPL-2.0-only
"""A flood beyond the budget: tracing ends by itself, and the stream goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from tests.program import Command
from tests.vm.conftest import SHARED, kprobes
from tests.vm.forked import Agent, flooding, until
from tests.vm.live import Live, balanced, live
from tests.vm.plain import LOOPBACK, Plain, listening, raw_and_filter

pytestmark = SHARED

RULES = raw_and_filter('-A INPUT -p udp -m udp --dport 9 -m comment --comment "budget" -j ACCEPT')
# raw OUTPUT and PREROUTING, filter OUTPUT and INPUT
CALLS = 4


@pytest.fixture
def plain() -> Iterator[Plain]:
    with listening(RULES) as namespace:
        yield namespace


def send(plain: Plain, count: int, port: int = 9) -> None:
    assert traffic.udp(plain.name, LOOPBACK[4], port, count).sent == count


def test_a_flood_beyond_max_rate_disarms_and_can_be_armed_again(
    plain: Plain, tmp_path: Path
) -> None:
    # GIVEN an agent with a budget, and traffic below it
    one = live(plain, tmp_path / "ready", max_rate=200)
    with one.agent:
        send(plain, 23)
        one.wait_rows(CALLS * 23)
        assert one.trace.books["state"] == "armed"
        # WHEN there is a flood
        with flooding(plain.name):
            one.wait(lambda: one.trace.books["state"] == "disarmed", "the end of the budget")
            # THEN nothing is probed any more, and the note says why
            assert until(lambda: not kprobes())
            (note,) = [text for level, text in one.trace.notes if level == "warn"]
            assert note.startswith("disarmed: ")
            assert note.endswith(
                " rows/s is more than --max-rate 200; arm again with a narrower filter"
            )
            balanced(one.trace.books)
            # AND armed again with a filter that rejects the flood, it stays armed
            one.command("filter", "disarmed", expr="udp dst port 53")
            one.command("arm", "armed")
            before = one.trace.rows
            send(plain, 29, 53)
            one.wait_rows(before + CALLS * 29)
            count = len(one.states)
            one.wait(lambda: len(one.states) > count + 2, "books")
            assert {books["state"] for books in one.states[count:]} == {"armed"}
        rows = one.finish()
    assert Counter(row.dport for row in rows)[53] >= CALLS * 29


def test_a_stopped_reader_does_not_prolong_the_budget(plain: Plain, tmp_path: Path) -> None:
    # GIVEN an agent with a budget of far more rows than fit into the pipe to its reader
    ready = tmp_path / "ready"
    with Agent(netns=plain.name, stop_after=3001, ready_file=ready) as agent:
        agent.wait_for_hello()
        assert until(ready.exists)
        # WHEN there is a flood and nobody reads, so that the agent is blocked in a write
        with flooding(plain.name):
            wchan = Path(f"/proc/{agent.pid}/wchan")
            assert until(lambda: "pipe_write" in wchan.read_text()), wchan.read_text()
            # THEN it disarms all the same, before anybody reads
            assert until(lambda: not [line for line in kprobes() if "t_do_table" in line])
            # It does so from inside the write, and stays blocked in it.
            assert until(lambda: "pipe_write" in wchan.read_text()), agent.stderr
        # AND the note comes once somebody reads
        one = Live(agent)
        one.wait(lambda: one.trace.books.get("state") == "disarmed", "the note")
        assert any("(--stop-after 3001)" in text for _, text in one.trace.notes)
        assert len(one.finish()) >= 3001


def test_print_ends_in_order_when_its_budget_is_spent(plain: Plain, tmp_path: Path) -> None:
    # GIVEN print with a budget
    arguments = ["print", "--netns", plain.name, "--max-rate", "200", "--format", "jsonl"]
    ready = ["--ready-file", str(tmp_path / "ready")]
    out = tmp_path / "out"
    with out.open("wb") as file, Command(tmp_path, [*arguments, *ready], stdout=file) as command:
        command.wait_ready()
        # WHEN there is a flood
        with flooding(plain.name):
            status, _ = command.finish()
        stderr = command.stderr()
    # THEN it ends with status 0, the reason, and the summary
    assert status == 0, stderr
    assert len(stderr) == 2, stderr
    assert "rows/s is more than --max-rate 200" in stderr[0]
    rows = len(out.read_text().splitlines())
    assert stderr[1].startswith(f"rows={rows} ")
    assert rows > 200
