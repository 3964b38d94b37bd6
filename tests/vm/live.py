# SPDX-License-Identifier: GPL-2.0-only
"""An agent that is told what to do while its stream is read, as the screen does it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipttrace.stream.frames import Kind
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.vm.forked import PATIENCE, Agent
from tests.vm.plain import Plain


class Live:
    """An agent in a process of its own, its stream read as the screen would."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.trace = Trace()
        self.states: list[dict[str, Any]] = []  # the books, one after the other
        self._fed = 0

    def feed(self) -> None:
        for frame in self.agent.frames[self._fed :]:
            self.trace.feed(frame)
            if frame.kind in (Kind.BOOKS, Kind.END):
                self.states.append(frame.json)
        self._fed = len(self.agent.frames)

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Reads until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline, f"{what} does not come: {self.trace.notes}"
            self.agent.read(0.1)
            self.feed()

    def tell(self, command: str, state: str, **more: Any) -> None:
        """One command on the control line, carried out once books say so."""
        before = len(self.states)
        self.agent.tell(json.dumps({"cmd": command, **more}).encode())

        def told() -> bool:
            return any(
                books["state"] == state and books["expr"] == more.get("expr", books["expr"])
                for books in self.states[before:]
            )

        self.wait(told, f"{command}: {state}")

    def wait_rows(self, count: int) -> None:
        self.wait(lambda: self.trace.rows >= count, f"row {count}")

    def finish(self) -> list[Row]:
        """Ends the agent in order; all rows."""
        self.agent.tell(b'{"cmd": "stop"}')
        self.agent.drain()
        self.feed()
        assert self.agent.wait() == 0
        assert self.agent.said == ""
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
    """Armed, for the namespace `plain`; `ready` is the file that says so."""
    one = Live(Agent(ready_file=ready, netns=plain.name, **options))
    one.wait(ready.exists, "the ready file")
    return one
