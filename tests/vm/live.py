# SPDX-License-Identifier: GPL-2.0-only
"""An agent under the control line while its stream is read, as by the screen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.vm.forked import Agent
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain


class Live:
    """An agent in a process of its own, and the trace made from its stream."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.trace = Trace()
        self.states: list[dict[str, Any]] = []  # all books in order
        self._fed = 0

    def feed(self) -> None:
        """Adds what was read of the stream to the trace."""
        for frame in self.unfed():
            self.trace.feed(frame)

    def unfed(self) -> list[Frame]:
        """The frames that were read since the last call."""
        frames = self.agent.frames[self._fed :]
        self._fed += len(frames)
        self.states += [frame.json for frame in frames if frame.kind in (Kind.BOOKS, Kind.END)]
        return frames

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Reads until `reached()`."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline, (
                f"never: {what}; {self.agent.stderr}{self.trace.notes}"
            )
            self.agent.read(0.1)
            self.feed()

    def command(self, command: str, state: str, **more: Any) -> None:
        """Sends a command, and waits for books with that state (and filter)."""
        before = len(self.states)
        self.agent.send(json.dumps({"cmd": command, **more}).encode())

        def reached() -> bool:
            return any(
                books["state"] == state and books["expr"] == more.get("expr", books["expr"])
                for books in self.states[before:]
            )

        self.wait(reached, f"{command}: {state}")

    def wait_rows(self, count: int) -> None:
        self.wait(lambda: self.trace.rows >= count, f"row {count}")

    def finish(self) -> list[Row]:
        """Ends the agent by the control line; returns all rows."""
        self.agent.send(b'{"cmd": "stop"}')
        self.agent.drain()
        self.feed()
        assert self.agent.wait() == 0
        assert self.agent.stderr == ""
        assert self.trace.ended is not None
        balanced(self.trace.books)
        assert self.trace.records == sum(self.trace.books["delivered"])
        store = self.trace.store
        return store.rows(range(store.first, store.end))


def balanced(books: dict[str, Any]) -> None:
    """due = delivered + lost + missed."""
    got = sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
    assert sum(books["due"]) == got, books


def live(plain: Plain, ready: Path, **options: Any) -> Live:
    """An armed agent for the namespace `plain`; it writes `ready` once it is armed."""
    one = Live(Agent(ready_file=ready, netns=plain.name, **options))
    one.wait(ready.exists, "the ready file")
    return one


def is_whole(row: Row) -> bool:
    """Whether a row has the columns that BPF fills in, and netlink cannot."""
    return bool(row.cost_ns and row.comm and row.skb) and None not in (row.pid, row.cpu)
