# SPDX-License-Identifier: GPL-2.0-only
"""The demo works for root and ordinary users, shows all kinds of rules, and leaves nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.paths import PROJECT

HANG: Final = 60.0  # s; detects hangs, tolerates slowness
NOBODY: Final = 65534
# An ordinary user's: PATH has no sbin folders.
ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "TERM": "xterm-256color"}
DEMO: Final = (sys.executable, "-m", "ipttrace", "demo")


def _as(user: str) -> dict[str, Any]:
    """Returns the options of Popen that run a command as this user."""
    if user == "root" or os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@pytest.fixture(params=["root", "ordinary user"])
def user(request: pytest.FixtureRequest) -> str:
    """The user who starts the demo; skips if the host forbids it."""
    name = str(request.param)
    if name == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    for program in ("nft", "iptables-nft-restore", "unshare"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"{program} is not installed")
    kinds = "-nm" if name == "root" else "-Unm"
    probe = ["unshare", kinds, "-p", "-f", sys.executable, "-c", "import ipttrace.cli"]
    done = subprocess.run(
        probe,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=ENVIRONMENT,
        check=False,
        **_as(name),
    )
    if done.returncode != 0:
        pytest.skip(f"{name} cannot create namespaces: {done.stderr.strip()}")
    return name


class Running:
    """A demo and all its processes."""

    def __init__(self, user: str, arguments: Sequence[str], **options: Any) -> None:
        options = {"stdin": subprocess.DEVNULL, **options}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.process = subprocess.Popen(
            [*DEMO, *arguments], cwd=PROJECT, env=ENVIRONMENT, bufsize=0, **options, **_as(user)
        )
        self.lines: list[str] = []
        self._rest = b""
        self._fds: dict[int, int] = {}
        self.namespaces: set[int] = set()

    def read_until(self, *words: Sequence[str]) -> list[str]:
        """Reads rows until each set of words is in one row; returns these rows."""
        matches = {tuple(each): "" for each in words}
        assert self.process.stdout is not None
        while not all(matches.values()):
            ready, _, _ = select.select([self.process.stdout], [], [], HANG)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, self._failure([each for each, found in matches.items() if not found])
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in (raw.decode() for raw in lines):
                self.lines.append(line)
                for each, found in matches.items():
                    if not found and set(each) <= set(line.split()):
                        matches[each] = line
        return list(matches.values())

    def _failure(self, missing: object) -> str:
        """Kills the demo; returns what it printed and which words are missing."""
        self.process.kill()
        assert self.process.stderr is not None
        stderr = self.process.stderr.read().decode()
        return "\n".join([*self.lines[-40:], stderr, f"missing: {missing}"])

    def note_processes(self) -> None:
        """Remembers its processes and their network namespaces."""
        self.namespaces.update(_namespaces(_descendants(self.process.pid)))
        for pid in _descendants(self.process.pid):
            if pid not in self._fds:
                self._fds[pid] = os.pidfd_open(pid)
        assert len(self._fds) >= 4  # the command, its child, the agent, the network

    def wait_for_all(self) -> None:
        """Waits until the remembered processes have ended."""
        for pid, fd in self._fds.items():
            if pid == self.process.pid:
                continue  # this process's child: close() waits for it
            assert select.select([fd], [], [], HANG)[0], f"process {pid} is still running"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        for fd in self._fds.values():
            os.close(fd)


def _descendants(pid: int) -> list[int]:
    """Returns the process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may contain any character, even ")".
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _namespaces(pids: Sequence[int] | None = None) -> set[int]:
    """Returns the readable network namespaces of these processes, by default of all."""
    found = set()
    for pid in pids if pids is not None else map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
        except OSError:
            continue
    return found


def _named() -> set[str]:
    """Returns the named namespaces, except those of tests running at the same time."""
    names = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    return {name for name in names if not re.fullmatch(r"ipt\d+-\d+", name)}


Start = Callable[..., Running]


@pytest.fixture
def start(user: str) -> Iterator[Start]:
    """Starts demos; checks afterwards that nothing is left of them."""
    namespaces, named = _namespaces(), _named()
    with ExitStack() as stack:

        def begin(*arguments: str, **options: Any) -> Running:
            running = Running(user, arguments, **options)
            stack.callback(running.close)
            started.append(running)
            return running

        started: list[Running] = []
        yield begin
        for running in started:
            assert running.process.poll() is not None
            running.wait_for_all()
            assert not (running.namespaces - namespaces) & _namespaces()
    assert _named() == named


def test_rows_of_all_kinds_of_rules_appear_and_the_puzzle_can_be_solved(start: Start) -> None:
    demo = start("--text")
    # THEN there are rows of iptables-nft, nftables and iptables-legacy, of both
    # families, with every verdict, and among them the one that drops HTTPS
    demo.read_until(
        ("ipt-client", "filter", "POLICY-OUT"),
        ("ipt-router", "mangle", "PREROUTING"),
        ("ipt-router", "nat", "PORTFORWARD"),
        ("ipt-router", "filter", "FORWARD", "policy", "DROP"),
        ("ipt-router", "filter", "LOGDROP", "DROP"),
        ("ipt-router", "guard", "outbound"),
        ("ipt-router", "guard", "tunnels", "ACCEPT"),
        ("ipt-server", "raw", "PREROUTING"),
        ("ipt-server", "shield", "https", "DROP", "10.2.0.2:443"),
        ("ipt-server", "shield", "https", "ACCEPT", "[fd00:2::2]:443"),
    )
    demo.note_processes()
    # AND an interrupt ends it, with the summary
    demo.process.send_signal(signal.SIGINT)
    _, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode == 130
    (line,) = err.decode().splitlines()
    assert line.startswith("rows=")
    assert line.endswith("engine=netlink")


def test_it_ends_after_its_duration(start: Start) -> None:
    demo = start("--duration", "1")
    out, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode == 0, err.decode()
    rows = int(err.decode().split()[0].removeprefix("rows="))
    assert rows > 0
    # plus a line of titles
    assert len(out.splitlines()) == rows + 1


def test_only_packets_that_match_the_filter_are_shown(start: Start) -> None:
    demo = start("--text", "tcp", "port", "443")
    demo.read_until(("shield", "DROP"))
    demo.note_processes()
    demo.process.send_signal(signal.SIGTERM)
    out, err = demo.process.communicate(timeout=HANG)
    assert err.decode().startswith("rows=")
    for line in (demo.lines + out.decode().splitlines())[1:]:
        assert ":443" in line


def test_its_recording_can_be_replayed(start: Start, tmp_path: Path) -> None:
    # An ordinary user may write into this folder, and only pass those above it.
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o711)
    demo = start("--duration", "1", "--record", str(tmp_path / "demo.iptr"))
    out, err = demo.process.communicate(timeout=HANG)
    assert (demo.process.returncode, out) == (0, b""), err.decode()
    argv = [sys.executable, "-m", "ipttrace", "replay", str(tmp_path / "demo.iptr")]
    replayed = subprocess.run(argv, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert "ipt-router" in replayed.stdout
    assert replayed.stderr.split()[:4] == err.decode().split()[:4]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_a_killed_demo(start: Start, number: signal.Signals) -> None:
    demo = start("--text")
    demo.read_until(("ipt-router",))
    demo.note_processes()
    demo.process.send_signal(number)
    # `start` checks that all of it is gone.
    demo.process.communicate(timeout=HANG)


@pytest.mark.parametrize("which", range(1, 4))
def test_nothing_is_left_when_one_of_its_processes_is_killed(start: Start, which: int) -> None:
    demo = start("--text")
    demo.read_until(("ipt-router",))
    demo.note_processes()
    # The command's child, the agent, or the network with its traffic.
    os.kill(_descendants(demo.process.pid)[which], signal.SIGKILL)
    if which == 3:
        # Only the traffic has stopped; the agent is still running.
        demo.process.send_signal(signal.SIGINT)
    _, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode in ((130,) if which == 3 else (1,)), err.decode()
    assert "Traceback" not in err.decode()
    assert any(line.startswith("rows=") for line in err.decode().splitlines())


def test_the_error_in_a_filter_is_pointed_at(start: Start) -> None:
    demo = start("--text", "no such thing")
    out, err = demo.process.communicate(timeout=HANG)
    assert (demo.process.returncode, out) == (2, b"")
    line, *pointer = err.decode().splitlines()
    assert line.startswith("ipttrace: filter: ")
    assert pointer == ["  no such thing", "  ^"]


def test_the_screen_shows_it_and_quitting_ends_it(start: Start) -> None:
    far, near = pty.openpty()
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))
    demo = start(stdin=near, stdout=near, stderr=near, start_new_session=True)
    os.close(near)
    drawn = b""

    def read_until(*words: bytes) -> None:
        nonlocal drawn
        # The screen redraws all the time: select() alone would never time out.
        end = time.monotonic() + HANG
        while not all(word in drawn for word in words):
            assert select.select([far], [], [], HANG)[0], drawn[-4000:]
            assert time.monotonic() < end, drawn[-4000:]
            drawn += os.read(far, 65536)

    read_until(b"demo: why does 10.2.0.2", b"router", b"POSTROUTING")
    demo.note_processes()
    os.write(far, b"q")
    read_until(b"engine=netlink")
    # An unread terminal would block the last output.
    assert demo.process.wait(HANG) == 0
    os.close(far)


def test_forbidden_namespaces_are_a_one_line_error(user: str) -> None:
    # GIVEN a user who may create none, in a user namespace, so that the host's limit stays
    number = "0" if user == "root" else "1000"
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    argv = ["unshare", "-U", f"--map-user={number}", f"--map-group={number}", "--keep-caps"]
    argv += ["sh", "-c", script, "sh"]
    argv += ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all"]
    done = subprocess.run(
        [*argv, *DEMO, "--text"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=ENVIRONMENT,
        check=False,
        timeout=HANG,
        **_as(user),
    )
    # THEN one line has the reason and a remedy
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "(user.max_user_namespaces is 0)" in line
    assert "`ipttrace lab`" in line
    assert ("`sudo ipttrace demo`" in line) == (user != "root")


def test_missing_programs_are_a_one_line_error(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ipttrace.lab.demo import processes\nprocesses._SYSTEM_PATH = ()\n"
        "from ipttrace.cli import main\nsys.exit(main(['demo', '--text']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**ENVIRONMENT, "PATH": str(tmp_path)},
        check=False,
        timeout=HANG,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "needs iproute2 iptables nftables: apt-get install" in line
