# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace print --engine netlink` in namespaces of a test's, and its rows.

Must not judge them: what is expected is the tests' own.
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

from ipttrace.trace.row import Step
from tests.vm.commands import PROGRAM, Command

Row = dict[str, Any]
# Against a hang only.
HANG = 60.0


class Tracer:
    """A command that prints rows: `rows` are those that have been read."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.rows: list[Row] = []
        self._rest = b""

    def _read(self, patience: float = HANG) -> bool:
        """Takes what has come, waits if nothing has; whether there may be more."""
        assert self.command.process.stdout
        fd = self.command.process.stdout.fileno()
        if not select.select([fd], [], [], patience)[0]:
            raise TimeoutError(self.command.stderr())
        data = os.read(fd, 1 << 20)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.rows += map(json.loads, lines)
        return bool(data)

    def wait(self, count: int, patience: float = HANG) -> None:
        """Until there are so many rows."""
        self.wait_until(lambda rows: len(rows) >= count, patience)

    def wait_until(self, so: Callable[[list[Row]], bool], patience: float = HANG) -> None:
        """Until it is so of the rows; TimeoutError where nothing comes any more."""
        while not so(self.rows):
            assert self._read(patience), self.command.stderr()

    def finish(self) -> list[Row]:
        """Ctrl-C; all rows.  Nothing was lost, and nothing was said but the summary."""
        self.command.interrupt()
        while self._read():
            pass
        assert self._rest == b""
        assert self.command.process.wait(HANG) == 130
        (said,) = self.command.stderr()
        assert said.startswith(f"rows={len(self.rows)} "), said
        assert " lost=0 missed=0 engine=netlink" in said, said
        return self.rows


@contextmanager
def tracing(
    folder: Path, netns: str | None, *words: str, before: Iterable[str] = ()
) -> Iterator[Tracer]:
    """Traces the namespace, or, where it is None, the one that `before` enters."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*before, PROGRAM, "print", "--engine", "netlink", "--format", "jsonl"]
    argv += ["--ready-file", str(folder / "ready")]
    argv += [] if netns is None else ["--netns", netns]
    with Command(folder, [], argv=[*argv, *words]) as command:
        command.wait_ready()
        yield Tracer(command)


@contextmanager
def tracing_each(folder: Path, names: dict[str, str]) -> Iterator[dict[str, Tracer]]:
    """Several namespaces, a command each."""
    with ExitStack() as stack:
        yield {
            role: stack.enter_context(tracing(folder / role, name)) for role, name in names.items()
        }


def path(row: Row) -> tuple[Step, ...]:
    return tuple(Step(step["chain"], step["rulenum"], step["match"]) for step in row["path"])


def told(row: Row) -> str:
    """A row in short: "OUTPUT filter OUTPUT:1 A:2/return ACCEPT"."""
    steps = (
        f"{one.chain}:{one.rulenum}" + ("" if one.match == "rule" else f"/{one.match}")
        for one in path(row)
    )
    return f"{row['hook']} {row['table']} {' '.join(steps)} {row['verdict']}"


def tally(rows: Iterable[Row]) -> Counter[str]:
    return Counter(map(told, rows))


def through(rows: Iterable[Row]) -> Counter[tuple[str, str, int]]:
    """(table, chain, rulenum) → packets that the rule has hit; 0 for a chain's policy."""
    found: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        for one in path(row):
            if one.match != "return":
                found[row["table"], one.chain, 0 if one.match == "policy" else one.rulenum] += 1
    return found


def unknown(rows: Iterable[Row]) -> bool:
    """Whether what netlink does not tell is empty in all rows, not invented."""
    names = ("skb", "cpu", "pid", "comm", "cost_ns")
    return all(row[name] is None for row in rows for name in names)
