# SPDX-License-Identifier: GPL-2.0-only
"""Namespaces' loggers: notes of the old ones, and the guard that restores them.

A process that sets a namespace's loggers, to nfnetlink_log or to none, first writes a file
with the old ones.  Once the process has ended, the file is used to restore them: at once, by the
guard, which is this file run as a script; or at the next start.  Files and loggers are
changed only under the folder's lock.

Runs isolated (``python -I -S``), so that it must import only the standard library, and
little of that.  Must not keep a traced namespace alive.  Longer than other files,
because it may not be split.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator

NFNETLINK_LOG = "nfnetlink_log"
NONE = "NONE"  # no logger

_SETTING = "/proc/sys/net/netfilter/nf_log"  # of the namespace of the thread that opens it
_PREFIX = "nf_log-"
_LOCK = "nf_log.lock"
_PATIENCE = 5.0  # s, while another process has the lock
_MOST = 8192  # bytes of a file that are read
_KEYS = ("boot", "pidns", "pid", "start", "inode", "cookie", "old", "set")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SO_NETNS_COOKIE = 71  # unique since boot; Linux 5.14
_PF_BIND, _PF_UNBIND = 3, 4  # enum nfulnl_msg_config_cmds

_libc = ctypes.CDLL(None, use_errno=True)


class Gone(Exception):
    """The namespace no longer exists."""


class State:
    """The content of one file: a process, a namespace, and its old loggers by NFPROTO_*."""

    __slots__ = ("boot", "cookie", "inode", "old", "path", "pid", "pidns", "set", "start")

    def __init__(
        self, path: str, inode: int, cookie: int, old: dict[int, str], set_to: str = NFNETLINK_LOG
    ) -> None:
        """Of the calling process.  `path` leads to the namespace; `cookie`: 0 if unknown.

        `set_to`: the logger that it sets, NFNETLINK_LOG or NONE.
        """
        self.boot = boot_id()
        self.pidns = os.stat("/proc/self/ns/pid").st_ino
        self.pid = os.getpid()
        self.start = started(self.pid) or 0
        self.inode = inode
        self.cookie = cookie
        self.old = old
        self.set = set_to
        self.path = path

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{_PREFIX}{self.inode}-{self.pidns}-{self.pid}"

    @property
    def title(self) -> str:
        """What messages call the namespace."""
        if os.path.dirname(self.path).endswith("/netns"):
            name = os.path.basename(self.path)
            return name if name.isprintable() else ascii(name)
        return str(self.inode)

    def same_namespace(self, other: State) -> bool:
        """Whether both are about the same namespace."""
        key = (self.boot, self.inode, self.cookie)
        return key == (other.boot, other.inode, other.cookie)

    @property
    def alive(self) -> bool:
        """Whether the process may still be running; true if that cannot be seen from here."""
        if self.boot != boot_id():
            return False
        if self.pidns != os.stat("/proc/self/ns/pid").st_ino:
            return True
        began = started(self.pid)
        return began == self.start or began == 0

    def text(self) -> bytes:
        """The file's bytes; the path comes last, because it may contain any character."""
        old = ",".join(f"{family}={name}" for family, name in self.old.items())
        numbers = (self.pidns, self.pid, self.start, self.inode, self.cookie)
        values = (self.boot, *numbers, old, self.set)
        lines = [f"{key} {value}\n" for key, value in zip(_KEYS, values, strict=True)]
        return "".join(lines).encode() + b"path " + os.fsencode(self.path)

    @classmethod
    def of(cls, text: bytes) -> State:
        """Parses the bytes of a file.  Raises ValueError."""
        lines = text.split(b"\n", len(_KEYS))
        if len(lines) != len(_KEYS) + 1:
            raise ValueError(f"{len(lines)} lines")
        values = []
        for key, line in zip((*_KEYS, "path"), lines, strict=True):
            if not line.startswith(key.encode() + b" "):
                raise ValueError(f"{key} is missing")
            values.append(line[len(key) + 1 :])
        one = cls.__new__(cls)
        one.boot = values[0].decode("ascii")
        one.pidns, one.pid, one.start, one.inode, one.cookie = map(int, values[1:6])
        one.old = {}
        for pair in values[6].decode("ascii").split(","):
            family, _, name = pair.partition("=")
            if not 0 <= int(family) <= 255 or not name.replace("_", "").isalnum():
                raise ValueError(f"not a family and a logger: {pair!r}")
            one.old[int(family)] = name
        one.set = values[7].decode("ascii")
        if one.set not in (NFNETLINK_LOG, NONE):
            raise ValueError(f"not what is set: {one.set!r}")
        one.path = os.fsdecode(values[8])
        return one


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def started(pid: int) -> int | None:
    """When a process started, clock ticks since boot; None if there is none, 0 if unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return 0
    # A zombie has closed its descriptors: it counts as ended.
    return None if words[0] in (b"Z", b"X") else int(words[19])


# -- files


def folders() -> list[str]:
    """The folders that may have files, the preferred first."""
    found = ["/run/ipttrace"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(os.path.join(runtime, "ipttrace"))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    found.append(os.path.join(cache, "ipttrace", "state"))
    return [one for one in found if os.path.isabs(one)]


def usable(folder: str) -> bool:
    """Whether the folder is this user's, and only this user may write there."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return False
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)


def folder() -> str | None:
    """The first usable folder, created if needed; None if there is none."""
    for one in folders():
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(one), exist_ok=True)
            os.mkdir(one, 0o700)
        if usable(one):
            return one
    return None


@contextlib.contextmanager
def locked(folder: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Holds the folder's lock.

    Raises OSError, after `patience` s BlockingIOError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(os.path.join(folder, _LOCK), flags, 0o600)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)
        yield
    finally:
        os.close(fd)


def states(folder: str, inode: int | None = None) -> list[State]:
    """Reads all files, or those of one namespace; removes those that are malformed.

    Needs the lock.  Raises OSError.
    """
    found = []
    prefix = _PREFIX if inode is None else f"{_PREFIX}{inode}-"
    for name in sorted(os.listdir(folder)):
        if not name.startswith(prefix):
            continue
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                state = State.of(os.read(fd, _MOST))
            finally:
                os.close(fd)
            if state.name != name:
                raise ValueError(name)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.unlink(path)
            continue
        found.append(state)
    return found


def write(folder: str, state: State) -> None:
    """Writes the file, synced to disk when this returns.  Needs the lock.  Raises OSError."""
    path = os.path.join(folder, state.name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(f"{folder}/.{state.name}", flags, 0o600)
    try:
        os.write(fd, state.text())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{folder}/.{state.name}", path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(folder: str, state: State) -> None:
    """Removes the file.  Needs the lock.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, state.name))


# -- loggers of the calling thread's namespace


def cookie() -> int:
    """The namespace's cookie, 0 if the kernel has none."""
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(raw, sys.byteorder)


def logger(family: int) -> str:
    """The name of the logger of `family` (NFPROTO_*), or NONE.  Raises OSError."""
    with open(f"{_SETTING}/{family}", encoding="utf-8", errors="backslashreplace") as file:
        return file.read().strip()


def writable() -> bool:
    """Whether any logger can be set; if not, NFNETLINK_LOG and NONE still can."""
    try:
        os.close(os.open(f"{_SETTING}/2", os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def set_logger(family: int, name: str) -> None:
    """Sets a logger.  Raises OSError, ENOENT if the kernel has no such logger."""
    try:
        fd = os.open(f"{_SETTING}/{family}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        if name not in (NFNETLINK_LOG, NONE):
            raise
        # /proc/sys is usually read-only in containers.
        _bind(family, _PF_BIND if name == NFNETLINK_LOG else _PF_UNBIND)
        return
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)


def _bind(family: int, command: int) -> None:
    """Sets or unsets nfnetlink_log by netlink: NFULNL_MSG_CONFIG with a command only."""
    import socket
    import struct

    netfilter, config, request_ack = 12, 4 << 8 | 1, 5
    head = struct.pack("=IHHII", 28, config, request_ack, 1, 0)
    request = head + struct.pack("=BBHHHB3x", family, 0, 0, 5, 1, command)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netfilter) as sock:
        sock.sendto(request, (0, 0))
        number = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


def restore(state: State) -> list[int]:
    """Restores the old loggers where ours are still set; returns their families.

    In the place of none another process may have set nfnetlink_log.  The calling thread
    enters the namespace and returns.  Raises Gone, OSError.
    """
    done = []
    ours = {state.set, NFNETLINK_LOG}
    with _inside(state):
        for family, old in state.old.items():
            current = logger(family)
            if current == old or current not in ours:
                continue
            try:
                set_logger(family, old)
            except FileNotFoundError:
                set_logger(family, NONE)  # the old logger's module has been unloaded
            done.append(family)
    return done


@contextlib.contextmanager
def _inside(state: State) -> Iterator[None]:
    """As netns.inside, and looks for the namespace at other paths than `state.path` too."""
    mine = "/proc/thread-self/ns/net"
    home = os.open(mine, os.O_RDONLY | os.O_CLOEXEC)
    moved = False
    try:
        if os.fstat(home).st_ino != state.inode:
            there = _open(state)
            try:
                _setns(there)
                moved = True
            finally:
                os.close(there)
        if state.cookie and cookie() != state.cookie:
            raise Gone
        yield
    finally:
        try:
            if moved:
                _setns(home)
        finally:
            os.close(home)


def _open(state: State) -> int:
    """A descriptor of the namespace.  Raises Gone, PermissionError."""
    for path in _candidates(state.path):
        try:
            if os.stat(path).st_ino != state.inode:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            # Processes with more privileges than this one are usually in another namespace.
            if path == state.path:
                raise
            continue
        except OSError:
            continue
        if os.fstat(fd).st_ino == state.inode:
            return fd
        os.close(fd)
    raise Gone


def _candidates(path: str) -> Iterator[str]:
    """Paths that may lead to a namespace that was at `path`."""
    yield path
    for folder, rest in (("/run/netns", ""), ("/proc", "/ns/net")):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if not rest or name.isdigit():
                    yield f"{folder}/{name}{rest}"


def _setns(fd: int) -> None:
    # os.setns() comes with Python 3.12; netns.setns cannot be imported here.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# -- when a process has ended, or is about to


def settle(folder: str, state: State) -> list[int]:
    """Restores loggers, unless another process still needs its own; removes the file.

    Returns the families that were restored.  Needs the lock.  Raises OSError, and then
    the file stays.
    """
    done = []
    found = states(folder, state.inode)
    others = [one for one in found if one.name != state.name and one.alive]
    if not any(one.same_namespace(state) for one in others):
        with contextlib.suppress(Gone):
            done = restore(state)
    remove(folder, state)
    return done


def main(arguments: list[str]) -> int:
    """Waits for the end of a process, then settles its files in a folder.

    `arguments`: the folder, the process id.  The end shows in the pipe at descriptor 0,
    or in a pidfd: other processes may have inherited the pipe.
    """
    folder, pid = arguments[0], int(arguments[1])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with contextlib.suppress(OSError):
        poll.register(os.pidfd_open(pid), select.POLLIN)
    with contextlib.suppress(OSError):
        os.write(1, b"\n")
        os.close(1)
    poll.poll()
    mine = os.stat("/proc/self/ns/pid").st_ino
    with locked(folder, 60.0):
        for state in states(folder):
            if (state.pid, state.pidns) == (pid, mine):
                with contextlib.suppress(OSError):
                    settle(folder, state)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
