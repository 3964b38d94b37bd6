# SPDX-License-Identifier: GPL-2.0-only
"""Runs `ipttrace print` or `record` over netlink in a test's namespaces, and reads its rows.

Must not check rows, except for their number in the summary.
"""

from __future__ import annotations

import json
import os
import select
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ipttrace.stream.decoder import Decoder
from ipttrace.trace.row import Row as StoreRow
from ipttrace.trace.row import Step
from ipttrace.trace.session import Trace
from tests.program import PROGRAM, Command

Row = dict[str, Any]
# Against a hang only.
HANG = 60.0


class Tracer:
    """A command that prints rows; `rows` are those read until now."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.rows: list[Row] = []
        self._rest = b""

    def _read(self, patience: float = HANG) -> bool:
        """Reads what has arrived, waiting if nothing has; returns whether there may be more."""
        assert self.command.process.stdout
        fd = self.command.process.stdout.fileno()
        if not select.select([fd], [], [], patience)[0]:
            raise TimeoutError(self.command.stderr())
        data = os.read(fd, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.rows += map(json.loads, lines)
        return bool(data)

    def wait(self, count: int, patience: float = HANG) -> None:
        """Waits until there are `count` rows."""
        self.wait_until(lambda rows: len(rows) >= count, patience)

    def wait_until(self, reached: Callable[[list[Row]], bool], patience: float = HANG) -> None:
        """Waits until `reached(rows)`.  Raises TimeoutError if no more rows come."""
        while not reached(self.rows):
            assert self._read(patience), self.command.stderr()

    def finish(self) -> list[Row]:
        """Sends Ctrl-C; returns all rows.  Checks that nothing was lost, and no note printed."""
        self.command.interrupt()
        while self._read():
            pass
        assert self._rest == b""
        assert self.command.process.wait(HANG) == 130
        (summary,) = self.command.stderr()
        assert summary.startswith(f"rows={len(self.rows)} "), summary
        assert " lost=0 missed=0 engine=netlink" in summary, summary
        return self.rows


class Stream:
    """The rows of `ipttrace record -` with these arguments, as they come."""

    def __init__(self, folder: Path, *words: str) -> None:
        ready = ["--ready-file", str(folder / "ready")]
        argv = [PROGRAM, "record", "--engine", "netlink", *ready, *words]
        self.command = Command(folder, [], argv=argv)
        self.trace = Trace()
        self._decoder = Decoder()

    def rows(self) -> list[StoreRow]:
        return self.trace.store.rows(range(len(self.trace.store)))

    def read(self) -> bool:
        """Reads what has come, waiting if nothing has; returns whether there may be more."""
        assert self.command.process.stdout
        fd = self.command.process.stdout.fileno()
        assert select.select([fd], [], [], HANG)[0], self.command.stderr()
        data = os.read(fd, 1 << 20)
        for frame in self._decoder.feed(data):
            self.trace.feed(frame)
        return bool(data)


@contextmanager
def tracing(
    folder: Path, netns: str | None, *words: str, before: Iterable[str] = ()
) -> Iterator[Tracer]:
    """Traces the namespace, or with None the one that the command `before` enters."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*before, PROGRAM, "print", "--engine", "netlink", "--format", "jsonl"]
    argv += ["--ready-file", str(folder / "ready")]
    argv += [] if netns is None else ["--netns", netns]
    with Command(folder, [], argv=[*argv, *words]) as command:
        command.wait_ready()
        yield Tracer(command)


@contextmanager
def tracing_each(folder: Path, names: dict[str, str]) -> Iterator[dict[str, Tracer]]:
    """Traces several namespaces, each by a command of its own."""
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(tracing(folder / role, name)) for role, name in names.items()
        }


def path(row: Row) -> tuple[Step, ...]:
    return tuple(Step(step["chain"], step["rulenum"], step["match"]) for step in row["path"])


def in_short(row: Row) -> str:
    """A row as text: "OUTPUT filter OUTPUT:1 A:2/return ACCEPT"."""
    steps = (
        f"{one.chain}:{one.rulenum}" + ("" if one.match == "rule" else f"/{one.match}")
        for one in path(row)
    )
    return f"{row['hook']} {row['table']} {' '.join(steps)} {row['verdict']}"


def tally(rows: Iterable[Row]) -> Counter[str]:
    return Counter(map(in_short, rows))


def hits(rows: Iterable[Row]) -> Counter[tuple[str, str, int]]:
    """Packets that hit each (table, chain, rulenum); a chain's policy is number 0."""
    found: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        for one in path(row):
            if one.match != "return":
                found[row["table"], one.chain, 0 if one.match == "policy" else one.rulenum] += 1
    return found


def unknown_is_empty(rows: Iterable[Row]) -> bool:
    """Whether the fields that netlink does not report are empty in all rows."""
    names = ("skb", "cpu", "pid", "comm", "cost_ns")
    return all(row[name] is None for row in rows for name in names)
