# SPDX-License-Identifier: GPL-2.0-only
"""What tests inside the lab VM share: a network, a capture, and the kernel's word.

These tests change the kernel that they run on, so they run only where
``make vm-test`` starts them: as root in the throwaway VM.  Each capture ends
with the books balanced, and the run ends with a look at dmesg.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.lab.network import Network
from ipttrace.lab.traffic_server import Server
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace

IN_GUEST = os.environ.get("IPTTRACE_GUEST") == "1"
SPLAT = re.compile(
    r"BUG:|WARNING:|Oops|general protection|RIP:|Call Trace|kernel panic|refcount_t|"
    r"use-after-free|scheduling while atomic|INFO: rcu|possible recursive locking"
)

collect_ignore_glob = [] if IN_GUEST else ["test_*.py"]


def dmesg() -> str:
    """The kernel's log, all of it."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace").stdout


def kprobes() -> list[str]:
    """The symbols of ours that are probed at this moment."""
    text = Path("/sys/kernel/debug/kprobes/list").read_text()
    return [line for line in text.splitlines() if "t_do_table" in line or "nf_log_trace" in line]


class Capture:
    """The kernel engine in this process, its stream fed to a Trace as a file's would be.

    Reads in a thread of its own until `finish`; then rows and books are final.
    """

    def __init__(self, expr: str = "", netns: str | None = None, **options: object) -> None:
        from ipttrace.capture.agent import Request
        from ipttrace.stream.frames import Decoder

        self.trace = Trace()
        self.reason = ""
        self.error: BaseException | None = None
        self.paused = threading.Event()
        self.paused.set()
        self._decoder = Decoder()
        self._request = Request(expr=expr, netns=netns, **options)  # type: ignore[arg-type]
        self._armed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._armed.wait()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        from ipttrace.capture.agent import Agent, open_engine
        from ipttrace.stream.frames import Writer

        # One thread for all of it: the socket that arms belongs to its thread.
        try:
            engine = open_engine(self._request)
            try:
                self._armed.set()
                Agent(self._request, engine, Writer(self)).run(self, None)
            finally:
                engine.close()
        except BaseException as error:
            self.error = error
        finally:
            self._armed.set()

    def write(self, data: bytes) -> None:
        """The sink of the agent's stream; blocks while `paused` is clear, as a full pipe does."""
        self.paused.wait()
        for frame in self._decoder.feed(data):
            self.trace.feed(frame)

    def finish(self) -> Trace:
        """Disarms, reads the rest, gives everything back."""
        if self._thread.is_alive():
            self.paused.set()
            self.reason = "done"
            self._thread.join(120)
            assert not self._thread.is_alive(), "the agent does not end"
        if self.error is not None:
            raise self.error
        return self.trace

    @property
    def rows(self) -> list[Row]:
        """All rows; call `finish` first."""
        store = self.trace.store
        return store.rows(range(store.first, store.end))

    @property
    def books(self) -> dict[str, object]:
        """The last books."""
        return self.trace.books

    def check_books(self) -> None:
        """due = delivered + lost + missed, and rows came of all that was delivered."""
        books = self.trace.books
        due = sum(books["due"])
        got = sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
        assert due == got, books
        assert self.trace.records == sum(books["delivered"]), books


@contextlib.contextmanager
def captured(expr: str = "", netns: str | None = None, **options: object) -> Iterator[Capture]:
    """Traces what happens in the block; afterwards rows and books are final and balanced."""
    capture = Capture(expr, netns, **options)
    try:
        yield capture
    finally:
        capture.finish()
    capture.check_books()


@pytest.fixture(scope="session", autouse=True)
def legacy_tables() -> None:
    """ip_tables and ip6_tables are there before anything is armed."""
    for module in ("iptable_filter", "ip6table_filter"):
        subprocess.run(["modprobe", module], check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """A fresh lab network with the server's servers up."""
    with Network() as net, Server(net.server):
        yield net


@pytest.fixture(autouse=True)
def _no_splat() -> Iterator[None]:
    """No test leaves a probe, a pin, the module or a complaint of the kernel behind."""
    before = len(dmesg())
    yield
    said = dmesg()[before:]
    assert not SPLAT.search(said), said
    assert not kprobes()
    assert not Path("/sys/fs/bpf/ipttrace").exists()
    assert not Path("/sys/module/ipttrace").exists()
