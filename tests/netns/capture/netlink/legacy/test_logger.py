# SPDX-License-Identifier: GPL-2.0-only
"""The logger of a namespace is as before, however a trace of legacy rules ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.legacy import logger as nf_log
from ipttrace.capture.netlink.legacy import logger_guard as nf_log_guard
from ipttrace.capture.netlink.legacy.logger import LogSetting, repair
from ipttrace.capture.netlink.legacy.logger_guard import NFNETLINK_LOG
from ipttrace.capture.netns import inside
from tests.netns.labs import fresh_prefix
from tests.paths import PROJECT

PATIENCE = 30.0

# Takes a namespace, says so and by which guard, and gives it back when it is told to.
HOLDER = """
import sys
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netns import inside
setting = LogSetting()
with inside(sys.argv[1], int(sys.argv[2])):
    setting.take(sys.argv[1], int(sys.argv[2]))
print(setting.guard, flush=True)
sys.stdin.readline()
print(setting.restore(), flush=True)
"""


class LogNamespace:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self.inode = os.stat(self.path).st_ino

    def loggers(self) -> tuple[str, str]:
        with inside(self.path, self.inode):
            return nf_log_guard.logger(2), nf_log_guard.logger(10)

    def set(self, family: int, name: str) -> None:
        with inside(self.path, self.inode):
            nf_log_guard.set_logger(family, name)

    def take(self, setting: LogSetting) -> None:
        with inside(self.path, self.inode):
            setting.take(self.path, self.inode)


@contextmanager
def made(name: str) -> Iterator[LogNamespace]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        space = LogNamespace(name)
        with inside(space.path, space.inode):
            # It may be a module, which a netlink message loads.
            subprocess.run(["nft", "list", "ruleset"], capture_output=True)
            try:
                nf_log_guard.set_logger(10, nf_log_guard.NONE)
                nf_log_guard.set_logger(2, NFNETLINK_LOG)
                nf_log_guard.set_logger(2, nf_log_guard.NONE)
            except FileNotFoundError:
                pytest.skip("this kernel has no nfnetlink_log")
        yield space
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def space(prefix: str) -> Iterator[LogNamespace]:
    with made(prefix) as one:
        yield one


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of these tests alone; processes that they start have it too."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(nf_log_guard, "folders", lambda: [str(tmp_path / "ipttrace")])
    return tmp_path / "ipttrace"


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("nf_log-"))


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return nf_log_guard.started(pid) is None


class Holder:
    """Another process that has taken a namespace."""

    def __init__(self, space: LogNamespace, folder: Path, *before: str) -> None:
        patch = (
            "import ipttrace.capture.netlink.legacy.logger_guard as g\n"
            f"g.folders = lambda: [{str(folder)!r}]\n"
        )
        path = space.path if space.name else "/proc/self/ns/net"
        command = [*before, sys.executable, "-c", patch + HOLDER, path]
        if space.name:
            command.append(str(space.inode))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.guard = int(self.process.stdout.readline())

    def end(self) -> str:
        """Its own way out; what could not be put back."""
        said, _ = self.process.communicate("\n", timeout=PATIENCE)
        return said.strip()

    def kill(self, *, guard: bool = False) -> None:
        if guard:
            os.kill(self.process.pid, signal.SIGSTOP)
            os.kill(self.guard, signal.SIGKILL)
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        wait_for(lambda: gone(self.guard))


def test_a_taken_setting_is_given_back_and_the_guard_is_gone(
    space: LogNamespace, folder: Path
) -> None:
    # GIVEN a namespace with a logger for one family
    before = space.loggers()
    setting = LogSetting()
    # WHEN it is taken
    space.take(setting)
    # THEN both families have ours, noted where only we can read it
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    (name,) = files(folder)
    assert (folder.stat().st_mode & 0o777, (folder / name).stat().st_mode & 0o777) == (0o700, 0o600)
    # WHEN it is given back THEN nothing is left
    assert setting.restore() == []
    assert space.loggers() == before
    assert files(folder) == []
    assert not Path("/proc", str(setting.guard)).exists()


def test_only_the_namespace_that_is_left_is_given_back(prefix: str, folder: Path) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(made(f"{prefix}{end}")) for end in "ab")
        setting = LogSetting()
        stack.callback(setting.restore)
        one.take(setting)
        two.take(setting)
        assert setting.restore(one.inode) == []
        assert one.loggers() == ("NONE", "NONE")
        assert two.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
        setting.restore()
        assert two.loggers() == ("NONE", "NONE")


def test_the_setting_of_the_namespace_we_come_from_is_not_touched(space: LogNamespace) -> None:
    home = (nf_log_guard.logger(2), nf_log_guard.logger(10))
    setting = LogSetting()
    space.take(setting)
    assert (nf_log_guard.logger(2), nf_log_guard.logger(10)) == home
    setting.restore()
    assert (nf_log_guard.logger(2), nf_log_guard.logger(10)) == home


def test_what_somebody_else_has_set_meanwhile_stays(space: LogNamespace) -> None:
    space.set(2, NFNETLINK_LOG)
    setting = LogSetting()
    space.take(setting)
    # WHEN another logger is chosen while we trace
    space.set(10, "NONE")
    space.set(2, "NONE")
    # THEN it is not undone
    setting.restore()
    assert space.loggers() == ("NONE", "NONE")


def test_what_was_ours_before_we_came_stays(space: LogNamespace, folder: Path) -> None:
    space.set(2, NFNETLINK_LOG)
    space.set(10, NFNETLINK_LOG)
    setting = LogSetting()
    space.take(setting)
    assert files(folder) == []
    setting.restore()
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)


def test_kill_9_is_put_right_at_once_by_the_guard(space: LogNamespace, folder: Path) -> None:
    holder = Holder(space, folder)
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN the process that traces is killed
    holder.kill()
    # THEN the guard has ended, all is as before, and the next start has nothing to say
    assert space.loggers() == ("NONE", "NONE")
    assert files(folder) == []
    assert repair() == []


def test_the_guard_stays_through_signals_and_has_nothing_open(
    space: LogNamespace, folder: Path
) -> None:
    holder = Holder(space, folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(holder.guard, number)
    opened = sorted(os.readlink(path) for path in Path(f"/proc/{holder.guard}/fd").iterdir())
    namespace = os.stat(f"/proc/{holder.guard}/ns/net").st_ino
    session = os.getsid(holder.guard)
    holder.kill()
    # THEN it has done its work; and nothing but its pipe, a pidfd and /dev/null was open
    assert space.loggers() == ("NONE", "NONE")
    assert [one.split(":")[0] for one in opened] == ["/dev/null", "anon_inode", "pipe"]
    assert namespace == os.stat("/proc/self/ns/net").st_ino
    assert session == holder.guard


def test_the_next_start_puts_back_what_a_killed_guard_could_not(
    space: LogNamespace, folder: Path
) -> None:
    # GIVEN a run and its guard that were killed together
    holder = Holder(space, folder)
    holder.kill(guard=True)
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN the next one starts THEN it says what it has put back, and of whom
    assert repair() == [
        f"put back nf_log.2 and nf_log.10 of network namespace {space.name}, "
        f"left by process {holder.process.pid}, which was killed"
    ]
    assert space.loggers() == ("NONE", "NONE")
    assert repair() == []
    assert files(folder) == []


def test_only_what_is_still_ours_is_put_back_at_the_next_start(
    space: LogNamespace, folder: Path
) -> None:
    holder = Holder(space, folder)
    holder.kill(guard=True)
    space.set(10, "NONE")
    said = repair()
    assert len(said) == 1
    assert said[0].startswith("put back nf_log.2 of")


def test_a_run_that_lives_is_not_repaired(space: LogNamespace, folder: Path) -> None:
    holder = Holder(space, folder)
    assert repair() == []
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert holder.end() == "[]"
    assert space.loggers() == ("NONE", "NONE")


def test_taking_after_a_crash_remembers_what_was_there_before_it(
    space: LogNamespace, folder: Path
) -> None:
    # GIVEN a crash that nobody has repaired
    Holder(space, folder).kill(guard=True)
    # WHEN the namespace is taken, and given back
    setting = LogSetting()
    space.take(setting)
    assert repair() == []
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    setting.restore()
    # THEN it is as before the crash
    assert space.loggers() == ("NONE", "NONE")
    assert files(folder) == []


@pytest.mark.parametrize("first_ends", [True, False])
@pytest.mark.parametrize("killed", [True, False])
def test_of_two_that_trace_the_last_puts_back(
    space: LogNamespace, folder: Path, first_ends: bool, killed: bool
) -> None:
    first, second = Holder(space, folder), Holder(space, folder)
    order = (first, second) if first_ends else (second, first)
    # WHEN one ends THEN the other's setting stays
    if killed:
        order[0].kill()
    else:
        assert order[0].end() == "[]"
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN that ends too THEN all is as before
    assert order[1].end() == "[]"
    assert space.loggers() == ("NONE", "NONE")
    assert files(folder) == []


def test_a_namespace_that_has_gone_is_forgotten(prefix: str, folder: Path) -> None:
    with made(prefix) as space:
        holder = Holder(space, folder)
        setting = LogSetting()
        space.take(setting)
        holder.kill(guard=True)
        subprocess.run(["ip", "netns", "del", prefix], check=True)
        # WHEN it goes away while it is taken THEN nobody minds
        assert setting.restore() == []
        assert repair() == []
        assert files(folder) == []


def test_a_namespace_with_a_number_that_another_had_is_left_alone(
    space: LogNamespace, folder: Path
) -> None:
    # GIVEN a crash, and a namespace that has got the number of the one of then
    Holder(space, folder).kill(guard=True)
    (name,) = files(folder)
    text = (folder / name).read_bytes()
    with inside(space.path, space.inode):
        cookie = nf_log_guard.cookie()
    if not cookie:
        pytest.skip("this kernel does not number its namespaces (Linux 5.14)")
    (folder / name).write_bytes(text.replace(b"cookie %d" % cookie, b"cookie 1"))
    # THEN its setting is its own business
    assert repair() == []
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert files(folder) == []


def test_after_a_reboot_files_are_forgotten(space: LogNamespace, folder: Path) -> None:
    Holder(space, folder).kill(guard=True)
    (name,) = files(folder)
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text.replace(nf_log_guard.boot_id().encode(), b"earlier"))
    assert repair() == []
    assert files(folder) == []


def test_files_of_any_content_are_survived(space: LogNamespace, folder: Path) -> None:
    Holder(space, folder).kill(guard=True)
    (name,) = files(folder)
    whole = (folder / name).read_bytes()
    junk = [b"", b"\0" * 50, whole[:40], whole.replace(b"NONE", b"../x"), b"\xff" * 9000]
    for number, text in enumerate(junk):
        (folder / f"nf_log-{number}").write_bytes(text)
    (folder / "nf_log-link").symlink_to("/etc/passwd")
    (folder / "nf_log-folder").mkdir()
    os.mkfifo(folder / "nf_log-fifo")
    assert len(repair()) == 1
    assert space.loggers() == ("NONE", "NONE")


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    open_to_all = tmp_path / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    assert not nf_log_guard.usable(str(open_to_all))
    assert not nf_log_guard.usable(str(tmp_path / "link"))


def test_where_nothing_can_be_noted_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf_log_guard, "folders", lambda: ["/proc/nowhere"])
    with pytest.raises(CaptureError, match=r"^legacy rules are not traced: there is no folder"):
        LogSetting()


def test_without_a_guard_nothing_is_changed(space: LogNamespace, folder: Path) -> None:
    setting = LogSetting()
    os.kill(setting.guard, signal.SIGKILL)
    os.waitid(os.P_PID, setting.guard, os.WEXITED | os.WNOWAIT)
    with pytest.raises(CaptureError, match="would put the logging back"):
        space.take(setting)
    assert space.loggers() == ("NONE", "NONE")
    assert setting.restore() == []


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: /proc/sys can be read, and netlink takes orders."""
    real = os.open

    def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
        if str(path).startswith("/proc/sys") and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)


def test_a_read_only_proc_is_no_hindrance_where_nothing_was_set(
    space: LogNamespace, read_only: None
) -> None:
    setting = LogSetting()
    space.take(setting)
    assert space.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert setting.restore() == []
    assert space.loggers() == ("NONE", "NONE")


def test_what_could_not_be_put_back_is_not_changed(
    space: LogNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a logger that only /proc/sys can set, which is read-only
    real = nf_log_guard.logger
    monkeypatch.setattr(nf_log_guard, "writable", lambda: False)
    monkeypatch.setattr(nf_log_guard, "logger", lambda f: "nf_log_ipv4" if f == 2 else real(f))
    setting = LogSetting()
    with pytest.raises(CaptureError, match="could not be put back afterwards"):
        space.take(setting)
    monkeypatch.setattr(nf_log_guard, "logger", real)
    assert space.loggers() == ("NONE", "NONE")
    setting.restore()


def test_an_ordinary_user_has_it_in_a_namespace_of_their_own(tmp_path: Path) -> None:
    # GIVEN a user namespace of a user who is not root
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    enter = ["unshare", "-Urn"]
    if subprocess.run([*become, *enter, "true"], capture_output=True).returncode != 0:
        pytest.skip("user namespaces are not allowed to ordinary users here")
    home = fresh_prefix()
    folder = Path("/tmp", f"{home}-state")
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    script = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(PROJECT)!r})
import ipttrace.capture.netlink.legacy.logger_guard as g
g.folders = lambda: ["/run/ipttrace", {str(folder)!r}]
from ipttrace.capture.netlink.legacy.logger import LogSetting, repair
def loggers(): return [g.logger(2), g.logger(10)]
before = loggers()
child = os.fork()
if child == 0:
    setting = LogSetting()
    setting.take("/proc/self/ns/net", os.stat("/proc/self/ns/net").st_ino)
    assert loggers() == [g.NFNETLINK_LOG, g.NFNETLINK_LOG], loggers()
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
deadline = time.monotonic() + {PATIENCE}
while loggers() != before:
    assert time.monotonic() < deadline
    time.sleep(0.01)
print("as before")
"""
    try:
        done = subprocess.run(
            [*become, *enter, sys.executable, "-c", script], capture_output=True, text=True
        )
        if "Permission denied" in done.stderr and "ipttrace" not in done.stderr.split("\n")[-2]:
            pytest.skip("this folder cannot be read by ordinary users")
        assert done.stdout == "as before\n", done.stderr
        assert files(folder) == []
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_sentence_names_a_namespace_safely() -> None:
    state = nf_log_guard.State("/run/netns/a\x1b[2Jb", 1, 0, {2: "NONE"})
    assert state.title == r"'a\x1b[2Jb'"
    assert nf_log_guard.State("/proc/7/ns/net", 99, 0, {2: "NONE"}).title == "99"
    assert nf_log_guard.State.of(state.text()).path == state.path
    assert nf_log._settings([2]) == "nf_log.2"
