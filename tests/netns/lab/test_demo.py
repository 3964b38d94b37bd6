# SPDX-License-Identifier: GPL-2.0-only
"""The demo comes up for root and for anybody, shows what it promises, and leaves nothing."""

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

HANG: Final = 60.0  # s; a limit for what hangs, not for what is slow
NOBODY: Final = 65534
# As an ordinary user has it: without the programs of root.
ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "TERM": "xterm-256color"}
DEMO: Final = (sys.executable, "-m", "ipttrace", "demo")


def _as(user: str) -> dict[str, Any]:
    """What makes a command that user's."""
    if user == "root" or os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@pytest.fixture(params=["root", "ordinary user"])
def user(request: pytest.FixtureRequest) -> str:
    """Who starts the demo; skips where the host does not let them."""
    name = str(request.param)
    if name == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    for needed in ("nft", "iptables-nft-restore", "unshare"):
        if not shutil.which(needed, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"{needed} is not installed")
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
        pytest.skip(f"no namespaces for {name} here: {done.stderr.strip()}")
    return name


class Running:
    """A demo, and all processes that it is made of."""

    def __init__(self, user: str, arguments: Sequence[str], **options: Any) -> None:
        options = {"stdin": subprocess.DEVNULL, **options}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.process = subprocess.Popen(
            [*DEMO, *arguments], cwd=PROJECT, env=ENVIRONMENT, bufsize=0, **options, **_as(user)
        )
        self.lines: list[str] = []
        self._rest = b""
        self._fds: dict[int, int] = {}
        self.spaces: set[int] = set()

    def read_until(self, *words: Sequence[str]) -> list[str]:
        """Reads rows until for each of `words` one has come that has them all; these rows."""
        wanted = {tuple(each): "" for each in words}
        assert self.process.stdout is not None
        while not all(wanted.values()):
            ready, _, _ = select.select([self.process.stdout], [], [], HANG)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, self._story([each for each, found in wanted.items() if not found])
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in (raw.decode() for raw in lines):
                self.lines.append(line)
                for each, found in wanted.items():
                    if not found and set(each) <= set(line.split()):
                        wanted[each] = line
        return list(wanted.values())

    def _story(self, wanted: object) -> str:
        self.process.kill()
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        return "\n".join([*self.lines[-40:], said, f"never came: {wanted}"])

    def look(self) -> None:
        """Takes note of its processes and of the network namespaces that they are in."""
        self.spaces.update(_spaces(_family(self.process.pid)))
        for pid in _family(self.process.pid):
            if pid not in self._fds:
                self._fds[pid] = os.pidfd_open(pid)
        assert len(self._fds) >= 4  # the command, the one between, the agent, the network

    def wait_for_the_end_of_all(self) -> None:
        for pid, fd in self._fds.items():
            if pid == self.process.pid:
                continue  # ours to wait for
            assert select.select([fd], [], [], HANG)[0], f"process {pid} is still there"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        for fd in self._fds.values():
            os.close(fd)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name may hold anything, a ")" too.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def _spaces(pids: Sequence[int] | None = None) -> set[int]:
    """The network namespaces of these processes, or of all, as far as they may be seen."""
    found = set()
    for pid in pids if pids is not None else map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
        except OSError:
            continue
    return found


def _named() -> set[str]:
    """Namespaces by name, but for those of tests, which may run beside these."""
    names = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    return {name for name in names if not re.fullmatch(r"ipt\d+-\d+", name)}


Start = Callable[..., Running]


@pytest.fixture
def start(user: str) -> Iterator[Start]:
    """Starts demos; afterwards there is nothing of them."""
    spaces, named = _spaces(), _named()
    with ExitStack() as stack:

        def begin(*arguments: str, **options: Any) -> Running:
            running = Running(user, arguments, **options)
            stack.callback(running.close)
            begun.append(running)
            return running

        begun: list[Running] = []
        yield begin
        for running in begun:
            assert running.process.poll() is not None
            running.wait_for_the_end_of_all()
            assert not (running.spaces - spaces) & _spaces()
    assert _named() == named


def test_rows_of_every_kind_of_rules_come_and_the_puzzle_can_be_solved(start: Start) -> None:
    demo = start("--text")
    # THEN there are rows of iptables-nft, of nftables and of legacy iptables, of
    # both families, with every verdict, and the one that drops HTTPS is among them
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
    demo.look()
    # and an interrupt ends it, with the summary
    demo.process.send_signal(signal.SIGINT)
    _, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode == 130
    (line,) = err.decode().splitlines()
    assert line.startswith("rows=")
    assert line.endswith("engine=netlink")


def test_it_ends_by_itself_after_its_time(start: Start) -> None:
    demo = start("--duration", "1")
    out, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode == 0, err.decode()
    rows = int(err.decode().split()[0].removeprefix("rows="))
    assert rows > 0
    # one line of titles
    assert len(out.splitlines()) == rows + 1


def test_only_what_the_filter_takes_is_shown(start: Start) -> None:
    demo = start("--text", "tcp", "port", "443")
    demo.read_until(("shield", "DROP"))
    demo.look()
    demo.process.send_signal(signal.SIGTERM)
    out, err = demo.process.communicate(timeout=HANG)
    assert err.decode().startswith("rows=")
    for line in (demo.lines + out.decode().splitlines())[1:]:
        assert ":443" in line


def test_a_recording_of_it_can_be_replayed(start: Start, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    demo = start("--duration", "1", "--record", str(tmp_path / "demo.iptr"))
    out, err = demo.process.communicate(timeout=HANG)
    assert (demo.process.returncode, out) == (0, b""), err.decode()
    argv = [sys.executable, "-m", "ipttrace", "replay", str(tmp_path / "demo.iptr")]
    replayed = subprocess.run(argv, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert "ipt-router" in replayed.stdout
    assert replayed.stderr.split()[:4] == err.decode().split()[:4]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_one_that_is_killed(start: Start, number: signal.Signals) -> None:
    demo = start("--text")
    demo.read_until(("ipt-router",))
    demo.look()
    demo.process.send_signal(number)
    # Nobody reads on meanwhile; and then all of it is gone, see `start`.
    demo.process.communicate(timeout=HANG)


@pytest.mark.parametrize("which", range(1, 4))
def test_nothing_is_left_when_one_of_its_processes_is_killed(start: Start, which: int) -> None:
    demo = start("--text")
    demo.read_until(("ipt-router",))
    demo.look()
    # The one between, the agent, and the network with its traffic.
    os.kill(_family(demo.process.pid)[which], signal.SIGKILL)
    if which == 3:
        # Without traffic nothing comes any more; the agent is as it was.
        demo.process.send_signal(signal.SIGINT)
    _, err = demo.process.communicate(timeout=HANG)
    assert demo.process.returncode in ((130,) if which == 3 else (1,)), err.decode()
    assert "Traceback" not in err.decode()
    assert any(line.startswith("rows=") for line in err.decode().splitlines())


def test_a_bad_filter_is_pointed_at(start: Start) -> None:
    demo = start("--text", "no such thing")
    out, err = demo.process.communicate(timeout=HANG)
    assert (demo.process.returncode, out) == (2, b"")
    line, *pointer = err.decode().splitlines()
    assert line.startswith("ipttrace: filter: ")
    assert pointer == ["  no such thing", "  ^"]


def test_the_screen_shows_it_and_leaving_ends_it(start: Start) -> None:
    far, near = pty.openpty()
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))
    demo = start(stdin=near, stdout=near, stderr=near, start_new_session=True)
    os.close(near)
    drawn = b""

    def read_until(*words: bytes) -> None:
        nonlocal drawn
        # It draws all the time, so that silence is not what ends this.
        end = time.monotonic() + HANG
        while not all(word in drawn for word in words):
            assert select.select([far], [], [], HANG)[0], drawn[-4000:]
            assert time.monotonic() < end, drawn[-4000:]
            drawn += os.read(far, 65536)

    read_until(b"demo: why does 10.2.0.2", b"ipt-", b"POSTROUTING")
    demo.look()
    os.write(far, b"q")
    read_until(b"engine=netlink")
    # A terminal that nobody reads holds up the last words.
    assert demo.process.wait(HANG) == 0
    os.close(far)


def test_where_there_are_no_namespaces_it_is_said_in_one_line(user: str) -> None:
    # GIVEN somebody who may make none: apart, so that the host's limit stays
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
    # THEN one line says so, and what can be done
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "(user.max_user_namespaces is 0)" in line
    assert "`ipttrace lab`" in line
    assert ("`sudo ipttrace demo`" in line) == (user != "root")


def test_where_programs_are_missing_it_is_said_in_one_line(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ipttrace.lab import demo\ndemo._SYSTEM = ()\n"
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
