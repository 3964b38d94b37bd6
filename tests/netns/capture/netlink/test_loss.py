# SPDX-License-Identifier: GPL-2.0-only
"""Messages lost over netlink are counted exactly, and tracing goes on."""

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
from tests.program import PROGRAM, Command

PACKETS = 20_000
SEEN = [("OUTPUT", "out", 2, "policy"), ("INPUT", "in", 1, "rule")]


def printing(folder: Path, namespace: LoopbackNamespace, *more: str) -> Command:
    ready = ["--ready-file", str(folder / "ready")]
    where = ["--engine", "netlink", "--netns", namespace.name, "--format", "jsonl"]
    return Command(folder, ["print", *where, *ready, *more])


def read(command: Command) -> Iterator[dict[str, Any]]:
    """The rows as they are printed."""
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
    """Reads into `got` until it has all rows of the 23 datagrams from `port`."""
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


def test_at_10000_packets_a_second_none_is_lost(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    with printing(tmp_path, namespace, "--count", str(ROWS * PACKETS)) as command:
        command.wait_ready()
        # WHEN 20,000 are sent at that rate
        namespace.send(PACKETS, 10_000)
        # THEN all have their rows, and these are right
        rows = list(read(command))
        assert command.process.wait(HANG) == 0
    assert kinds(rows) == dict.fromkeys(SEEN, PACKETS)
    assert {row["verdict"] for row in rows} == {"ACCEPT"}
    assert {row["sport"] for row in rows} == {rows[0]["sport"]}
    (line,) = command.stderr()
    assert line.startswith(f"rows={ROWS * PACKETS} ")
    assert summary(line)["lost"] == summary(line)["missed"] == "0"


def test_a_burst_is_complete_or_its_losses_are_counted_and_tracing_goes_on(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    with printing(tmp_path, namespace) as command:
        command.wait_ready()
        # WHEN 20,000 packets are sent at once, and 23 after these have been read
        namespace.send(PACKETS)
        rows = read(command)
        got = [next(rows)]
        namespace.wait_read()
        wait_for(rows, got, namespace.send(23))
        assert namespace.counted() == PACKETS + 23
        got += finish(command, rows)
    # THEN the rows are right, and missing ones are counted as lost
    (line,) = command.stderr()
    found = summary(line)
    assert int(found["rows"]) == len(got)
    assert set(kinds(got)) == set(SEEN)
    assert len(got) + int(found["lost"]) >= ROWS * (PACKETS + 23)
    assert int(found["lost"]) == 0 or len(got) < ROWS * (PACKETS + 23)


class Counting:
    """An engine in this process, and the number of trace messages that it read."""

    def __init__(
        self, namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch, **options: Any
    ) -> None:
        self.messages = 0
        put = Mailbox.put

        def count(mailbox: Mailbox, batch: Batch) -> None:
            kinds = batch.data[:, 4:6].copy().view("=u2")[:, 0]
            self.messages += int((kinds == (10 << 8 | 17)).sum())
            put(mailbox, batch)

        monkeypatch.setattr(Mailbox, "put", count)
        self.engine = NetlinkEngine(Options(netns=namespace.name, **options))
        self.ports: Counter[int] = Counter()  # source ports of all calls

    def take(self, until: Callable[[], bool]) -> None:
        """Takes records until `until()` is true."""
        deadline = time.monotonic() + HANG
        while not until() and time.monotonic() < deadline:
            self.engine.buffers.wait(0.05)
            entries = self.engine.take()[0]
            self.ports.update(entries["packet"][:, 20:22].copy().view(">u2")[:, 0].tolist())


@pytest.fixture
def counting(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Counting]]:
    made: list[Counting] = []

    def make(**options: Any) -> Counting:
        made.append(Counting(namespace, monkeypatch, **options))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def test_messages_without_room_are_counted_exactly(
    namespace: LoopbackNamespace, counting: Callable[..., Counting]
) -> None:
    # GIVEN an engine with a tiny buffer, which does not read at the moment
    one = counting(buffer=65536)
    engine: Any = one.engine
    with engine._reader._lock:
        # WHEN more messages come than fit
        namespace.send(PACKETS)
    one.take(lambda: one.messages + engine.books()["lost"][1] >= MESSAGES * PACKETS)
    # THEN each message was read or is counted as lost
    lost = sum(engine.books()["lost"])
    assert lost > 0
    assert one.messages + lost == MESSAGES * PACKETS
    # AND later messages all arrive
    namespace.wait_read()
    later = namespace.send(23)
    one.take(lambda: one.ports[later] == ROWS * 23)
    assert one.ports[later] == ROWS * 23
    assert sum(engine.books()["lost"]) == lost
    engine.disarm()
    engine.take()
    books = engine.books()
    assert books["flipped"] == FLIPS * (PACKETS + 23)
    assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
    assert books["delivered"][0] == one.ports.total()


def test_with_an_ordinary_users_small_buffer_the_summary_counts_the_losses(
    tmp_path: Path,
) -> None:
    # GIVEN a namespace of an ordinary user, whose buffers are limited
    if os.geteuid() != 0:
        pytest.skip("this test enters the namespace as root")
    with LoopbackNamespace(user=True) as namespace:
        ready = tmp_path / "ready"
        arguments = ["print", "--engine", "netlink", "--format", "jsonl"]
        argv = [*namespace.enter, PROGRAM, *arguments, "--ready-file", str(ready)]
        with Command(tmp_path, [], argv=argv) as command:
            command.wait_ready()
            (agent,) = children(command.process.pid)
            # WHEN the agent is stopped for a while
            os.kill(agent, signal.SIGSTOP)
            try:
                namespace.send(PACKETS)
            finally:
                os.kill(agent, signal.SIGCONT)
            rows = read(command)
            got = [next(rows)]
            # AND datagrams are sent later
            namespace.wait_read()
            wait_for(rows, got, namespace.send(23))
            got += finish(command, rows)
    # THEN the rows are right, some are missing, and the losses are counted
    found = summary(command.stderr()[-1])
    assert set(kinds(got)) == set(SEEN)
    assert int(found["rows"]) == len(got) < ROWS * (PACKETS + 23)
    lost = int(found["lost"])
    assert 0 < lost <= MESSAGES * PACKETS
    assert len(got) + lost >= ROWS * (PACKETS + 23)


def test_a_reader_that_pauses_loses_nothing(namespace: LoopbackNamespace, tmp_path: Path) -> None:
    with printing(tmp_path, namespace) as command:
        command.wait_ready()
        # GIVEN a reader that does not read the output
        namespace.send(PACKETS // 2, 10_000)
        assert command.process.stdout
        wait_for_full(command.process.stdout.fileno())
        # WHEN more packets are sent, and then everything is read
        later = namespace.send(23)
        rows = read(command)
        got: list[dict[str, Any]] = []
        wait_for(rows, got, later)
        got += finish(command, rows)
    # THEN nothing is missing
    (line,) = command.stderr()
    assert set(kinds(got)) == set(SEEN)
    assert int(summary(line)["rows"]) == len(got)
    assert summary(line)["lost"] == "0"
    assert len(got) == ROWS * (PACKETS // 2 + 23)


def wait_for_full(fd: int) -> None:
    """Waits until nothing more is written to a pipe."""
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


def test_log_messages_without_room_are_counted_by_their_sequence_numbers(
    namespace: LoopbackNamespace, counting: Callable[..., Counting]
) -> None:
    # GIVEN legacy tables, where each datagram hits a rule and a policy
    namespace.run("iptables-legacy-restore", text=LEGACY)
    namespace.run("nft", "delete", "table", "ip", "t")
    one = counting(buffer=65536)
    engine: Any = one.engine
    (traced,) = engine._namespaces.values()
    assert traced.legacy is not None
    # WHEN more log messages come than fit
    with engine._reader._lock:
        namespace.send(PACKETS)
    namespace.wait_read()
    later = namespace.send(23)
    one.take(lambda: one.ports[later] == ROWS * 23)
    # THEN the sequence numbers show how many are missing; the kernel counted flips' too
    assert one.ports[later] == ROWS * 23
    legacy = traced.legacy
    assert 0 < legacy.missing <= traced.mailbox.drops()
    assert legacy._last_seq + 1 == 2 * (PACKETS + 23)
    lost = sum(engine.books()["lost"])
    assert lost == traced.mailbox.drops()
    engine.disarm()
    engine.take()
    books = engine.books()
    assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
