# SPDX-License-Identifier: GPL-2.0-only
"""What tests in the lab VM share: a network, a capture, and checks of the kernel's log.

These tests change the running kernel, so they run only in the throwaway VM, as root
(``make vm-test``).  After each capture the books must balance, and after each test the
kernel must be as before, with no complaint in its log.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast
from unittest import mock

import numpy as np
import pytest

from ipttrace.lab.network import Network
from ipttrace.lab.traffic.server import Server
from ipttrace.stream.messages import Books
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from tests.data.stop import StopFlag
from tests.lab.conntrack import flush
from tests.lab.stages import Tally
from tests.vm.kernel_log import dmesg, forget_leaks, leaks, lockdep_is_off, splat
from tests.vm.patience import PATIENCE

T = TypeVar("T")

IN_GUEST = os.environ.get("IPTTRACE_GUEST") == "1"
# For tests of what hardly depends on the kernel.  `make test` divides them between its kernels:
# IPTTRACE_SHARE=1/2 is the first of two shares.  TOGETHER: all tests of the file in one.
SHARED = pytest.mark.shared
TOGETHER = pytest.mark.shared(together=True)
# Parts of the symbols that the module probes: ip[6]t_do_table, nf_log_trace, and for changes
# of rules xt_replace_table, xt_register_table and xt_request_find_table_lock.
PROBED = ("t_do_table", "nf_log_trace", " xt_re")

collect_ignore_glob = [] if IN_GUEST else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out the tests that are in another kernel's share."""
    share, shares = map(int, os.environ.get("IPTTRACE_SHARE", "1/1").split("/"))
    units: dict[str, int] = {}  # to the number of each: a test, or a file
    kept = []
    for item in items:
        if marker := item.get_closest_marker("shared"):
            unit = str(item.path) if marker.kwargs.get("together") else item.nodeid
            if units.setdefault(unit, len(units)) % shares != share - 1:
                continue
        kept.append(item)
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Prints at once why a test failed: on the debug kernel a run may be ended before its end."""
    if report.failed and os.uname().release.endswith("-debug"):
        print(f"\n{report.longreprtext}", flush=True)


def refuse_bpf() -> contextlib.AbstractContextManager[object]:
    """During a with statement `auto` finds that BPF cannot be used."""
    from ipttrace.capture import doctor

    refusal = doctor.Check("engine: bpf", "fail", "no, because a test says so")
    return mock.patch.object(doctor, "why_not_bpf", return_value=refusal)


@pytest.fixture(params=["kernel+bpf", "kernel+netlink"])
def pair(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engines that `auto` uses, if nf_tables is loaded."""
    subprocess.run(["modprobe", "nf_tables"], check=True)
    with contextlib.nullcontext() if request.param == "kernel+bpf" else refuse_bpf():
        yield str(request.param)


def kprobes() -> list[str]:
    """The lines of the kernel's list of probes that are of the module."""
    text = Path("/sys/kernel/debug/kprobes/list").read_text()
    return [line for line in text.splitlines() if any(word in line for word in PROBED)]


class Capture:
    """The kernel engine in this process, with its stream read into a Trace.

    Runs in a thread of its own until `finish`; then rows and books are final.
    """

    def __init__(self, expr: str = "", netns: str | None = None, **options: object) -> None:
        from ipttrace.capture.request import Request
        from ipttrace.stream.decoder import Decoder

        self.trace = Trace()
        self.error: BaseException | None = None
        self.paused = threading.Event()
        self.paused.set()
        self._stop = StopFlag()
        self._decoder = Decoder()
        options.setdefault("engine", "kernel")
        self._request = Request(expr=expr, netns=netns, **options)  # type: ignore[arg-type]
        self._armed = threading.Event()
        self._fed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._armed.wait()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        from ipttrace.capture.agent import Agent
        from ipttrace.capture.choice import open_engine
        from ipttrace.stream.writer import Writer

        # All in one thread: the socket that arms belongs to its thread.
        try:
            engine = open_engine(self._request)
            try:
                self._armed.set()
                Agent(self._request, engine, Writer(self)).run(self._stop, None)
            finally:
                engine.close()
        except BaseException as error:
            self.error = error
        finally:
            self._armed.set()

    def write(self, data: bytes | memoryview, /) -> None:
        """Where the agent writes its stream; blocks while `paused` is clear, like a full pipe."""
        self.paused.wait()
        for frame in self._decoder.feed(data):
            self.trace.feed(frame)
        with self._fed:
            self._fed.notify_all()

    def wait_until(self, reached: Callable[[], bool], timeout: float = PATIENCE) -> bool:
        """Waits until `reached()`, checked after each frame; False after `timeout` seconds."""
        with self._fed:
            return self._fed.wait_for(lambda: reached() or not self._thread.is_alive(), timeout)

    def wait_rows(
        self, count: int, netns: set[int] | None = None, timeout: float = PATIENCE
    ) -> None:
        """Waits for `count` rows (of these namespaces): softirqs may run later."""

        def reached() -> bool:
            seen = self.trace.store.column("netns")
            return len(seen if netns is None else seen[np.isin(seen, list(netns))]) >= count

        self.wait_until(reached, timeout)

    def finish(self) -> Trace:
        """Ends the agent and reads the rest."""
        if self._thread.is_alive():
            self.paused.set()
            self._stop.reason = "done"
            self._thread.join(2 * PATIENCE)
            assert not self._thread.is_alive(), "the agent does not end"
        if self.error is not None:
            raise self.error
        return self.trace

    @property
    def rows(self) -> list[Row]:
        """All rows, after `finish`."""
        store = self.trace.store
        return store.rows(range(store.first, store.end))

    @property
    def books(self) -> Books:
        """The last books."""
        return cast(Books, self.trace.books)

    def check_books(self) -> None:
        """due = delivered + lost + missed, and all that was delivered was read."""
        books = self.trace.books
        due = sum(books["due"])
        got = sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
        assert due == got, books
        assert self.trace.records == sum(books["delivered"]), books


@contextlib.contextmanager
def captured(expr: str = "", netns: str | None = None, **options: object) -> Iterator[Capture]:
    """Traces during the block; afterwards rows are final and the books balance."""
    capture = Capture(expr, netns, **options)
    try:
        yield capture
    finally:
        capture.finish()
    capture.check_books()


@pytest.fixture(scope="session", autouse=True)
def _kernel_stays_sound() -> Iterator[None]:
    """Between and after all tests the kernel has no complaint, and a debug kernel finds no leak."""
    before = len(dmesg())
    if lockdep_is_off():
        pytest.fail(f"lockdep is off before the first test:\n{splat(dmesg())}")
    forget_leaks()
    yield
    found = leaks()
    assert not found, f"kmemleak:\n{found}"
    found = splat(dmesg()[before:])
    assert not found, found
    assert not lockdep_is_off()


@pytest.fixture(scope="session", autouse=True)
def legacy_tables() -> None:
    """ip_tables and ip6_tables are loaded before anything is armed."""
    for module in ("iptable_filter", "ip6table_filter"):
        subprocess.run(["modprobe", module], check=True)


@pytest.fixture(scope="session")
def _lab() -> Iterator[tuple[Network, Server]]:
    with Network() as net, Server(net.server) as server:
        yield net, server


@pytest.fixture
def network(_lab: tuple[Network, Server]) -> Network:
    """The lab network with its servers up, and no connection in conntrack.

    Shared, because setting it up takes seconds: do not change its rules.
    """
    flush(_lab[0])
    return _lab[0]


@pytest.fixture
def server(_lab: tuple[Network, Server]) -> Server:
    """The servers of `network`; their counters continue from test to test."""
    return _lab[1]


def _resent(network: Network) -> int:
    """Segments that client and server have retransmitted (RFC 4022, tcpRetransSegs)."""

    def read() -> int:
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])

    return sum(network.call(role, read) for role in ("client", "server"))


def undisturbed(network: Network, attempt: Callable[[], T]) -> T:
    """The result of an attempt during which TCP retransmitted nothing.

    It does if the guest stalls for a second.  Then there are unexpected packets, and the
    attempt is repeated.
    """
    for _ in range(5):
        before = _resent(network)
        result = attempt()
        if _resent(network) == before:
            return result
        flush(network)
    pytest.fail("TCP retransmitted in each attempt: the guest stalls again and again")


def seen(rows: Iterable[Row], network: Network) -> Tally:
    """The rows of the lab network, counted as scenarios count them."""
    roles = {inode: role for role, inode in network.inodes().items()}
    found: Tally = Counter()
    for row in rows:
        if row.netns in roles:
            found[roles[row.netns], row.hook, row.table, row.path, row.verdict] += 1
    return found


@pytest.fixture(autouse=True)
def _no_splat() -> Iterator[None]:
    """No test leaves a probe, a pin or the module behind, or a complaint of the kernel."""
    before = len(dmesg())
    yield
    found = splat(dmesg()[before:])
    assert not found, found
    assert not kprobes()
    assert "trace_tg" not in Path("/sys/kernel/debug/kprobes/list").read_text()
    assert not Path("/sys/fs/bpf/ipttrace").exists()
    assert not Path("/sys/module/ipttrace").exists()
