# SPDX-License-Identifier: GPL-2.0-only
"""An agent's stream as a trace, while it runs, and rules that say what they are."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ipttrace.lab import traffic
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.vm.forked import PATIENCE, Agent, fork
from tests.vm.plain import LOOPBACK, Plain


class Live:
    """An agent in a process of its own, and the trace that its stream makes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.trace = Trace()
        self.early: list[Row] = []  # each row as it was when it came
        self._fed = 0

    def feed(self) -> None:
        """What has been read of the stream."""
        for frame in self.agent.frames[self._fed :]:
            end = self.trace.store.end
            self.trace.feed(frame)
            self.early += self.trace.store.rows(range(end, self.trace.store.end))
        self._fed = len(self.agent.frames)

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Reads until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline, f"{what} does not come: {self.agent.said}"
            self.agent.read(0.1)
            self.feed()

    def text(self, plain: Plain, family: int, table: str, chain: str, rulenum: int) -> str:
        """Of the newest rules that the trace knows; "" where they have changed since."""
        for one in self.trace.rulesets.tables(plain.inode):
            if (one.family, one.table) == (family, table) and one.current and chain in one.chains:
                return (*one.chains[chain].rules, *[""] * rulenum)[rulenum - 1]
        return ""

    def wait_text(self, plain: Plain, family: int, rulenum: int, words: str) -> None:
        """Until rule `rulenum` of INPUT has these words in it."""
        self.wait(lambda: words in self.text(plain, family, "filter", "INPUT", rulenum), words)

    def finish(self) -> Trace:
        """Ends the agent and reads the rest."""
        self.agent.tell(b'{"cmd": "stop"}')
        self.agent.drain()
        self.feed()
        assert self.agent.wait() == 0
        return self.trace

    def rows(self, plain: Plain, hook: str = "INPUT") -> list[Row]:
        store = self.trace.store
        rows = store.rows(range(store.first, store.end))
        return [row for row in rows if row.netns == plain.inode and row.hook == hook]


@contextlib.contextmanager
def live(ready: Path, **options: object) -> Iterator[Live]:
    """A running agent that says that it is ready."""
    with Agent(ready_file=ready, **options) as agent:
        one = Live(agent)
        one.wait(ready.exists, "the ready file")
        yield one


def probed() -> list[str]:
    """The functions of x_tables that are probed at this moment."""
    lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    return [line for line in lines if " xt_re" in line]


def rules(name: str, at: int = 1) -> str:
    """INPUT whose rule `at` has the comment `name`; those before it match nothing here."""
    fill = "".join(f"-A INPUT -p tcp --dport {n}\n" for n in range(1, at))
    return (
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n"
        f'{fill}-A INPUT -p udp -m comment --comment "{name}" -j ACCEPT\nCOMMIT\n'
    )


def generation_of(row: Row) -> int:
    """What the comment in its rule says."""
    return int((row.rule or "").split('"generation ')[1].split('"')[0])


@contextlib.contextmanager
def flowing(plain: Plain) -> Iterator[None]:
    """Packets all the time, not too many."""

    def send() -> int:
        return traffic.udp(plain.name, LOOPBACK[4], 9, 100_000, rate=100.0).sent * 0

    pid = fork(send)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
