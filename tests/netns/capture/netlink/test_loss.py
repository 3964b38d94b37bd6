# SPDX-License-Identifier: GPL-2.0-only
"""What is lost over netlink is counted, to the message, and tracing goes on."""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from ipttrace.capture.netlink.reader import Batch, Mailbox
from tests.netns.loopback import FLIPS, HANG, MESSAGES, ROWS, LoopbackNamespace, children, summary
from tests.vm.commands import PROGRAM, Command

PACKETS = 20_000
SEEN = [("OUTPUT", "out", 2, "policy"), ("INPUT", "in", 1, "rule")]


@pytest.fixture
def space() -> Iterator[LoopbackNamespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with LoopbackNamespace() as one:
        yield one


def printing(folder: Path, space: LoopbackNamespace, *more: str) -> Command:
    ready = ["--ready-file", str(folder / "ready")]
    where = ["--engine", "netlink", "--netns", space.name, "--format", "jsonl"]
    return Command(folder, ["print", *where, *ready, *more])


def read(command: Command) -> Iterator[dict[str, Any]]:
    """Rows as they come."""
    assert command.process.stdout
    fd, rest = command.process.stdout.fileno(), b""
    while True:
        assert select.select([fd], [], [], HANG)[0], command.stderr()
        data = os.read(fd, 1 << 20)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)


def wait_for(rows: Iterator[dict[str, Any]], got: list[dict[str, Any]], port: int) -> None:
    """Until all rows of the 23 datagrams from `port` have come."""
    left = ROWS * 23 - sum(row["sport"] == port for row in got)
    while left:
        got.append(next(rows))
        left -= got[-1]["sport"] == port


def kinds(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter((row["hook"], row["chain"], row["rulenum"], row["match"]) for row in rows)


def finish(command: Command, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    command.interrupt()
    rest = list(rows)
    assert command.process.wait(HANG) == 130
    return rest


def test_of_10000_packets_a_second_none_is_lost(space: LoopbackNamespace, tmp_path: Path) -> None:
    with printing(tmp_path, space, "--count", str(ROWS * PACKETS)) as command:
        command.wait_ready()
        # WHEN 20,000 come at that rate
        space.send(PACKETS, 10_000)
        # THEN all are rows, each of them right
        rows = list(read(command))
        assert command.process.wait(HANG) == 0
    assert kinds(rows) == dict.fromkeys(SEEN, PACKETS)
    assert {row["verdict"] for row in rows} == {"ACCEPT"}
    assert {row["sport"] for row in rows} == {rows[0]["sport"]}
    (line,) = command.stderr()
    assert line.startswith(f"rows={ROWS * PACKETS} ")
    assert summary(line)["lost"] == summary(line)["missed"] == "0"


def test_a_burst_is_told_whole_or_its_losses_are_and_tracing_goes_on(
    space: LoopbackNamespace, tmp_path: Path
) -> None:
    with printing(tmp_path, space) as command:
        command.wait_ready()
        # WHEN 20,000 packets come at once, and 23 once these are done with
        space.send(PACKETS)
        rows = read(command)
        got = [next(rows)]
        space.when_read()
        wait_for(rows, got, space.send(23))
        assert space.counted() == PACKETS + 23
        got += finish(command, rows)
    # THEN rows are right, and those that are not there are told as lost
    (line,) = command.stderr()
    found = summary(line)
    assert int(found["rows"]) == len(got)
    assert set(kinds(got)) == set(SEEN)
    assert len(got) + int(found["lost"]) >= ROWS * (PACKETS + 23)
    assert int(found["lost"]) == 0 or len(got) < ROWS * (PACKETS + 23)


class Counting:
    """An engine in this process, and how many messages of traces it was given."""

    def __init__(
        self, space: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch, **options: Any
    ) -> None:
        self.messages = 0
        put = Mailbox.put

        def count(box: Mailbox, batch: Batch) -> None:
            kinds = batch.data[:, 4:6].copy().view("=u2")[:, 0]
            self.messages += int((kinds == (10 << 8 | 17)).sum())
            put(box, batch)

        monkeypatch.setattr(Mailbox, "put", count)
        self.engine = NetlinkEngine(Options(netns=space.name, **options))
        self.ports: Counter[int] = Counter()  # source ports of all calls

    def take(self, until: Callable[[], bool]) -> None:
        """Until it is so."""
        deadline = time.monotonic() + HANG
        while not until() and time.monotonic() < deadline:
            self.engine.buffers.wait(0.05)
            entries = self.engine.take()[0]
            self.ports.update(entries["packet"][:, 20:22].copy().view(">u2")[:, 0].tolist())


@pytest.fixture
def counting(
    space: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Counting]]:
    made: list[Counting] = []

    def make(**options: Any) -> Counting:
        made.append(Counting(space, monkeypatch, **options))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def test_messages_that_find_no_room_are_counted_to_the_last(
    space: LoopbackNamespace, counting: Callable[..., Counting]
) -> None:
    # GIVEN an engine that has hardly any room, and does not read just now
    one = counting(buffer=65536)
    engine: Any = one.engine
    with engine._reader._lock:
        # WHEN more comes than there is room for
        space.send(PACKETS)
    one.take(lambda: one.messages + engine.books()["lost"][1] >= MESSAGES * PACKETS)
    # THEN each message came, or is lost
    lost = sum(engine.books()["lost"])
    assert lost > 0
    assert one.messages + lost == MESSAGES * PACKETS
    # AND afterwards all comes again
    space.when_read()
    later = space.send(23)
    one.take(lambda: one.ports[later] == ROWS * 23)
    assert one.ports[later] == ROWS * 23
    assert sum(engine.books()["lost"]) == lost
    engine.disarm()
    engine.take()
    books = engine.books()
    assert books["flipped"] == FLIPS * (PACKETS + 23)
    assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
    assert books["delivered"][0] == one.ports.total()


def test_an_ordinary_users_small_buffer_loses_and_the_summary_says_how_much(
    tmp_path: Path,
) -> None:
    # GIVEN a namespace of an ordinary user's, who may not have a large buffer
    if os.geteuid() != 0:
        pytest.skip("this test enters the namespace as root")
    with LoopbackNamespace(user=True) as space:
        ready = tmp_path / "ready"
        arguments = ["print", "--engine", "netlink", "--format", "jsonl"]
        argv = [*space.enter, PROGRAM, *arguments, "--ready-file", str(ready)]
        with Command(tmp_path, [], argv=argv) as command:
            command.wait_ready()
            (agent,) = children(command.process.pid)
            # WHEN the agent does not run for a while
            os.kill(agent, signal.SIGSTOP)
            try:
                space.send(PACKETS)
            finally:
                os.kill(agent, signal.SIGCONT)
            rows = read(command)
            got = [next(rows)]
            # AND datagrams come later
            space.when_read()
            wait_for(rows, got, space.send(23))
            got += finish(command, rows)
    # THEN the rows are right, fewer than there were packets, and what is missing is told of
    found = summary(command.stderr()[-1])
    assert set(kinds(got)) == set(SEEN)
    assert int(found["rows"]) == len(got) < ROWS * (PACKETS + 23)
    lost = int(found["lost"])
    assert 0 < lost <= MESSAGES * PACKETS
    assert len(got) + lost >= ROWS * (PACKETS + 23)


def test_a_reader_that_stands_still_for_a_while_makes_nothing_get_lost_uncounted(
    space: LoopbackNamespace, tmp_path: Path
) -> None:
    with printing(tmp_path, space) as command:
        command.wait_ready()
        # GIVEN that nobody reads what it prints
        space.send(PACKETS // 2, 10_000)
        assert command.process.stdout
        wait_for_full(command.process.stdout.fileno())
        # WHEN more comes, and then all is read
        later = space.send(23)
        rows = read(command)
        got: list[dict[str, Any]] = []
        wait_for(rows, got, later)
        got += finish(command, rows)
    # THEN nothing is missing that was not told of
    (line,) = command.stderr()
    assert set(kinds(got)) == set(SEEN)
    assert int(summary(line)["rows"]) == len(got)
    assert summary(line)["lost"] == "0"
    assert len(got) == ROWS * (PACKETS // 2 + 23)


def wait_for_full(fd: int) -> None:
    """Until a pipe is, as far as this end can know: nothing is added any more."""
    size, before = 0, -1
    deadline = time.monotonic() + HANG
    while size != before or not size:
        assert time.monotonic() < deadline
        before = size
        time.sleep(0.2)
        room = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, room)
        size = room[0]


LEGACY = """*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp --dport 9 -j ACCEPT
COMMIT
"""


def test_lines_of_legacy_rules_that_find_no_room_are_counted_by_their_numbers(
    space: LoopbackNamespace, counting: Callable[..., Counting]
) -> None:
    # GIVEN legacy rules, of which each datagram meets one and a policy
    space.run("iptables-legacy-restore", text=LEGACY)
    space.run("nft", "delete", "table", "ip", "t")
    one = counting(buffer=65536)
    engine: Any = one.engine
    (traced,) = engine._namespaces.values()
    assert traced.legacy is not None
    # WHEN more of their lines come than there is room for
    with engine._reader._lock:
        space.send(PACKETS)
    space.when_read()
    later = space.send(23)
    one.take(lambda: one.ports[later] == ROWS * 23)
    # THEN the engine knows from their numbers how many are missing, as the kernel does
    assert one.ports[later] == ROWS * 23
    lines = traced.legacy
    assert lines._gaps == lines.box.drops() > 0
    assert lines._last + 1 == 2 * (PACKETS + 23)
    lost = sum(engine.books()["lost"])
    assert lost == lines.box.drops() + traced.mailbox.drops()
    engine.disarm()
    engine.take()
    books = engine.books()
    assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
