# SPDX-License-Identifier: GPL-2.0-only
"""A namespace's logger is restored, however a trace of legacy rules ends."""

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
from ipttrace.capture.netlink.legacy import logger as logger_module
from ipttrace.capture.netlink.legacy import logger_guard as guard
from ipttrace.capture.netlink.legacy.logger import LogSetting, repair
from ipttrace.capture.netlink.legacy.logger_guard import NFNETLINK_LOG
from ipttrace.capture.netns import inside
from tests.netns.labs import fresh_prefix
from tests.paths import PROJECT

PATIENCE = 30.0

# Sets a namespace's loggers, prints its guard's pid, and restores them after a line of input.
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
            return guard.logger(2), guard.logger(10)

    def set(self, family: int, name: str) -> None:
        with inside(self.path, self.inode):
            guard.set_logger(family, name)

    def take(self, setting: LogSetting, set_to: str = NFNETLINK_LOG) -> None:
        with inside(self.path, self.inode):
            setting.take(self.path, self.inode, set_to=set_to)


@contextmanager
def made(name: str) -> Iterator[LogNamespace]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        namespace = LogNamespace(name)
        with inside(namespace.path, namespace.inode):
            # Loads nf_tables and nfnetlink if they are modules.
            subprocess.run(["nft", "list", "ruleset"], capture_output=True)
            try:
                guard.set_logger(10, guard.NONE)
                guard.set_logger(2, NFNETLINK_LOG)
                guard.set_logger(2, guard.NONE)
            except FileNotFoundError:
                pytest.skip("this kernel has no nfnetlink_log")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def namespace(prefix: str) -> Iterator[LogNamespace]:
    with made(prefix) as one:
        yield one


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for this test's notes only, also in processes that it starts."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(guard, "folders", lambda: [str(tmp_path / "ipttrace")])
    return tmp_path / "ipttrace"


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("nf_log-"))


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "never reached"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return guard.started(pid) is None


class Holder:
    """Another process that has set a namespace's loggers."""

    def __init__(self, namespace: LogNamespace, folder: Path, *before: str) -> None:
        patch = (
            "import ipttrace.capture.netlink.legacy.logger_guard as g\n"
            f"g.folders = lambda: [{str(folder)!r}]\n"
        )
        path = namespace.path if namespace.name else "/proc/self/ns/net"
        command = [*before, sys.executable, "-c", patch + HOLDER, path]
        if namespace.name:
            command.append(str(namespace.inode))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.guard = int(self.process.stdout.readline())

    def end(self) -> str:
        """Makes it restore and end; returns what it could not restore."""
        output, _ = self.process.communicate("\n", timeout=PATIENCE)
        return output.strip()

    def kill(self, *, guard: bool = False) -> None:
        if guard:
            os.kill(self.process.pid, signal.SIGSTOP)
            os.kill(self.guard, signal.SIGKILL)
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        wait_for(lambda: gone(self.guard))


def test_loggers_are_set_and_restored_and_the_guard_ends(
    namespace: LogNamespace, folder: Path
) -> None:
    # GIVEN a namespace with a logger for one family
    before = namespace.loggers()
    setting = LogSetting()
    # WHEN its loggers are set
    namespace.take(setting)
    # THEN both families have nfnetlink_log, with a note that only this user can read
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    (name,) = files(folder)
    assert (folder.stat().st_mode & 0o777, (folder / name).stat().st_mode & 0o777) == (0o700, 0o600)
    # WHEN they are restored THEN nothing is left behind
    assert setting.restore() == []
    assert namespace.loggers() == before
    assert files(folder) == []
    assert not Path("/proc", str(setting.guard)).exists()


def test_restoring_one_namespace_leaves_the_others(prefix: str, folder: Path) -> None:
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


def test_the_loggers_of_the_process_own_namespace_are_not_touched(namespace: LogNamespace) -> None:
    home = (guard.logger(2), guard.logger(10))
    setting = LogSetting()
    namespace.take(setting)
    assert (guard.logger(2), guard.logger(10)) == home
    setting.restore()
    assert (guard.logger(2), guard.logger(10)) == home


def test_a_logger_that_another_program_set_meanwhile_stays(namespace: LogNamespace) -> None:
    namespace.set(2, NFNETLINK_LOG)
    setting = LogSetting()
    namespace.take(setting)
    # WHEN another program changes the loggers during the trace
    namespace.set(10, "NONE")
    namespace.set(2, "NONE")
    # THEN they stay
    setting.restore()
    assert namespace.loggers() == ("NONE", "NONE")


def test_nfnetlink_log_stays_if_it_was_set_before(namespace: LogNamespace, folder: Path) -> None:
    namespace.set(2, NFNETLINK_LOG)
    namespace.set(10, NFNETLINK_LOG)
    setting = LogSetting()
    namespace.take(setting)
    assert files(folder) == []
    setting.restore()
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)


@pytest.mark.parametrize("none_ends_first", [True, False])
def test_where_one_run_needs_no_logger_another_one_may_need_nfnetlink_log(
    namespace: LogNamespace, folder: Path, none_ends_first: bool
) -> None:
    # GIVEN a namespace with a logger, and a run that does without
    namespace.set(2, NFNETLINK_LOG)
    setting = LogSetting()
    namespace.take(setting, "NONE")
    assert namespace.loggers() == ("NONE", "NONE")
    # WHEN another run sets nfnetlink_log
    holder = Holder(namespace, folder)
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # THEN the first logger is back after both have ended, in any order
    if none_ends_first:
        assert setting.restore() == []
        assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
        assert holder.end() == "[]"
    else:
        assert holder.end() == "[]"
        assert setting.restore() == []
    assert namespace.loggers() == (NFNETLINK_LOG, "NONE")
    assert files(folder) == []


def test_after_kill_9_the_guard_restores_at_once(namespace: LogNamespace, folder: Path) -> None:
    holder = Holder(namespace, folder)
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN the tracing process is killed
    holder.kill()
    # THEN the guard has restored and ended, and the next start has nothing to repair
    assert namespace.loggers() == ("NONE", "NONE")
    assert files(folder) == []
    assert repair() == []


def test_the_guard_survives_signals_and_holds_no_descriptors(
    namespace: LogNamespace, folder: Path
) -> None:
    holder = Holder(namespace, folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(holder.guard, number)
    opened = sorted(os.readlink(path) for path in Path(f"/proc/{holder.guard}/fd").iterdir())
    inode = os.stat(f"/proc/{holder.guard}/ns/net").st_ino
    session = os.getsid(holder.guard)
    holder.kill()
    # THEN it has restored, and only its pipe, a pidfd and /dev/null were open
    assert namespace.loggers() == ("NONE", "NONE")
    assert [one.split(":")[0] for one in opened] == ["/dev/null", "anon_inode", "pipe"]
    assert inode == os.stat("/proc/self/ns/net").st_ino
    assert session == holder.guard


def test_the_next_start_restores_what_a_killed_guard_could_not(
    namespace: LogNamespace, folder: Path
) -> None:
    # GIVEN a run that was killed together with its guard
    holder = Holder(namespace, folder)
    holder.kill(guard=True)
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN the next run starts THEN it reports what it has restored, and who left it
    assert repair() == [
        f"restored nf_log.2 and nf_log.10 of network namespace {namespace.name}, "
        f"left by process {holder.process.pid}, which was killed"
    ]
    assert namespace.loggers() == ("NONE", "NONE")
    assert repair() == []
    assert files(folder) == []


def test_the_next_start_restores_only_loggers_that_are_still_nfnetlink_log(
    namespace: LogNamespace, folder: Path
) -> None:
    holder = Holder(namespace, folder)
    holder.kill(guard=True)
    namespace.set(10, "NONE")
    repaired = repair()
    assert len(repaired) == 1
    assert repaired[0].startswith("restored nf_log.2 of")


def test_the_loggers_of_a_live_run_are_not_repaired(namespace: LogNamespace, folder: Path) -> None:
    holder = Holder(namespace, folder)
    assert repair() == []
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert holder.end() == "[]"
    assert namespace.loggers() == ("NONE", "NONE")


def test_a_trace_after_a_crash_restores_the_loggers_from_before_the_crash(
    namespace: LogNamespace, folder: Path
) -> None:
    # GIVEN a crash that was not repaired
    Holder(namespace, folder).kill(guard=True)
    # WHEN the loggers are set, and restored
    setting = LogSetting()
    namespace.take(setting)
    assert repair() == []
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    setting.restore()
    # THEN they are as before the crash
    assert namespace.loggers() == ("NONE", "NONE")
    assert files(folder) == []


@pytest.mark.parametrize("first_ends", [True, False])
@pytest.mark.parametrize("killed", [True, False])
def test_of_two_tracing_processes_the_last_one_restores(
    namespace: LogNamespace, folder: Path, first_ends: bool, killed: bool
) -> None:
    first, second = Holder(namespace, folder), Holder(namespace, folder)
    order = (first, second) if first_ends else (second, first)
    # WHEN one ends THEN the loggers stay for the other
    if killed:
        order[0].kill()
    else:
        assert order[0].end() == "[]"
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    # WHEN that ends too THEN they are restored
    assert order[1].end() == "[]"
    assert namespace.loggers() == ("NONE", "NONE")
    assert files(folder) == []


def test_a_deleted_namespace_is_forgotten(prefix: str, folder: Path) -> None:
    with made(prefix) as namespace:
        holder = Holder(namespace, folder)
        setting = LogSetting()
        namespace.take(setting)
        holder.kill(guard=True)
        subprocess.run(["ip", "netns", "del", prefix], check=True)
        # WHEN it is deleted during the trace THEN restoring is no error
        assert setting.restore() == []
        assert repair() == []
        assert files(folder) == []


def test_a_namespace_with_the_inode_of_an_earlier_one_is_left_alone(
    namespace: LogNamespace, folder: Path
) -> None:
    # GIVEN a crash, and a namespace with the inode of the one that was traced
    Holder(namespace, folder).kill(guard=True)
    (name,) = files(folder)
    text = (folder / name).read_bytes()
    with inside(namespace.path, namespace.inode):
        cookie = guard.cookie()
    if not cookie:
        pytest.skip("this kernel has no cookies of namespaces (Linux 5.14)")
    (folder / name).write_bytes(text.replace(b"cookie %d" % cookie, b"cookie 1"))
    # THEN its loggers are not touched
    assert repair() == []
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert files(folder) == []


def test_notes_from_before_a_reboot_are_removed(namespace: LogNamespace, folder: Path) -> None:
    Holder(namespace, folder).kill(guard=True)
    (name,) = files(folder)
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text.replace(guard.boot_id().encode(), b"earlier"))
    assert repair() == []
    assert files(folder) == []


def test_malformed_notes_do_no_harm(namespace: LogNamespace, folder: Path) -> None:
    Holder(namespace, folder).kill(guard=True)
    (name,) = files(folder)
    complete = (folder / name).read_bytes()
    junk = [b"", b"\0" * 50, complete[:40], complete.replace(b"NONE", b"../x"), b"\xff" * 9000]
    for number, text in enumerate(junk):
        (folder / f"nf_log-{number}").write_bytes(text)
    (folder / "nf_log-link").symlink_to("/etc/passwd")
    (folder / "nf_log-folder").mkdir()
    os.mkfifo(folder / "nf_log-fifo")
    assert len(repair()) == 1
    assert namespace.loggers() == ("NONE", "NONE")


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    open_to_all = tmp_path / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    assert not guard.usable(str(open_to_all))
    assert not guard.usable(str(tmp_path / "link"))


def test_without_a_folder_for_notes_no_logger_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "folders", lambda: ["/proc/nowhere"])
    with pytest.raises(CaptureError, match=r"^no folder for notes"):
        LogSetting()


def test_without_a_guard_no_logger_is_changed(namespace: LogNamespace, folder: Path) -> None:
    setting = LogSetting()
    os.kill(setting.guard, signal.SIGKILL)
    os.waitid(os.P_PID, setting.guard, os.WEXITED | os.WNOWAIT)
    with pytest.raises(CaptureError, match="would restore the loggers"):
        namespace.take(setting)
    assert namespace.loggers() == ("NONE", "NONE")
    assert setting.restore() == []


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: /proc/sys is read-only, netlink is not."""
    real = os.open

    def refuse(path: object, flags: int, *rest: object, **more: object) -> int:
        if str(path).startswith("/proc/sys") and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)


def test_with_a_read_only_proc_tracing_works_if_no_logger_was_set(
    namespace: LogNamespace, read_only: None
) -> None:
    setting = LogSetting()
    namespace.take(setting)
    assert namespace.loggers() == (NFNETLINK_LOG, NFNETLINK_LOG)
    assert setting.restore() == []
    assert namespace.loggers() == ("NONE", "NONE")


def test_a_logger_that_could_not_be_restored_is_not_changed(
    namespace: LogNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a logger that only /proc/sys can restore, which is read-only
    real = guard.logger
    monkeypatch.setattr(guard, "writable", lambda: False)
    monkeypatch.setattr(guard, "logger", lambda f: "nf_log_ipv4" if f == 2 else real(f))
    setting = LogSetting()
    with pytest.raises(CaptureError, match="could not be restored"):
        namespace.take(setting)
    monkeypatch.setattr(guard, "logger", real)
    assert namespace.loggers() == ("NONE", "NONE")
    setting.restore()


def test_in_a_namespace_of_an_ordinary_user_the_guard_restores_too(tmp_path: Path) -> None:
    # GIVEN a user namespace of a user other than root
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


def test_messages_name_a_namespace_without_control_characters() -> None:
    state = guard.State("/run/netns/a\x1b[2Jb", 1, 0, {2: "NONE"})
    assert state.title == r"'a\x1b[2Jb'"
    assert guard.State("/proc/7/ns/net", 99, 0, {2: "NONE"}).title == "99"
    assert guard.State.of(state.text()).path == state.path
    assert logger_module._settings([2]) == "nf_log.2"
