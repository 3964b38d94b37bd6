# SPDX-License-Identifier: GPL-2.0-only
"""Texts of rules in a trace while its agent runs, and rules that name their generation."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from ipttrace.lab import traffic
from ipttrace.trace.row import Row
from tests.vm.forked import Agent, fork
from tests.vm.live import Live
from tests.vm.plain import LOOPBACK, Plain


class TextLive(Live):
    """An agent whose trace also keeps each row as it was when it came."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.early: list[Row] = []

    def feed(self) -> None:
        """Adds what was read of the stream to the trace."""
        for frame in self.unfed():
            end = self.trace.store.end
            self.trace.feed(frame)
            self.early += self.trace.store.rows(range(end, self.trace.store.end))

    def text(self, plain: Plain, family: int, table: str, chain: str, rulenum: int) -> str:
        """The rule's text in the trace; "" if the rules have changed since it was read."""
        for one in self.trace.rulesets.tables(plain.inode):
            if (one.family, one.table) == (family, table) and one.current and chain in one.chains:
                return (*one.chains[chain].rules, *[""] * rulenum)[rulenum - 1]
        return ""

    def wait_text(self, plain: Plain, family: int, rulenum: int, words: str) -> None:
        """Waits until the text of rule `rulenum` of INPUT contains `words`."""
        self.wait(lambda: words in self.text(plain, family, "filter", "INPUT", rulenum), words)

    def rows(self, plain: Plain, hook: str = "INPUT") -> list[Row]:
        """All rows of the namespace at that hook."""
        store = self.trace.store
        rows = store.rows(range(store.first, store.end))
        return [row for row in rows if row.netns == plain.inode and row.hook == hook]


@contextlib.contextmanager
def live(ready: Path, **options: object) -> Iterator[TextLive]:
    """An armed agent; it writes `ready` once it is armed."""
    with Agent(ready_file=ready, **options) as agent:
        one = TextLive(agent)
        one.wait(ready.exists, "the ready file")
        yield one


def probed() -> list[str]:
    """The probes on x_tables, which see changes of rules."""
    lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    return [line for line in lines if " xt_re" in line]


def rules(name: str, at: int = 1) -> str:
    """Rules of which INPUT `at` has the comment `name`; those before it match nothing."""
    fill = "".join(f"-A INPUT -p tcp --dport {n}\n" for n in range(1, at))
    return (
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n"
        f'{fill}-A INPUT -p udp -m comment --comment "{name}" -j ACCEPT\nCOMMIT\n'
    )


def generation_of(row: Row) -> int:
    """The generation in the comment of its rule."""
    return int((row.rule or "").split('"generation ')[1].split('"')[0])


@contextlib.contextmanager
def flowing(plain: Plain) -> Iterator[None]:
    """100 packets a second during the block."""

    def send() -> int:
        return traffic.udp(plain.name, LOOPBACK[4], 9, 100_000, rate=100.0).sent * 0

    pid = fork(send)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_short(row: Row) -> str:
    """A row as text: "OUTPUT filter OUTPUT:1 A:2/return ACCEPT"."""
    steps = (
        f"{one.chain}:{one.rulenum}" + ("" if one.match == "rule" else f"/{one.match}")
        for one in row.path
    )
    return f"{row.hook} {row.table} {' '.join(steps)} {row.verdict}"
