# SPDX-License-Identifier: GPL-2.0-only
"""What logger a namespace's packets go to: notes of what it was, and putting it back.

A file for each namespace and process that has set it to nfnetlink_log says what was
there before.  Whoever has the folder's lock and finds the file of a process that is
gone puts that back: the guard, which is this file run as a script, as soon as the
process ends in any way; or the next start.

Must import nothing but the standard library, and little of that: it runs isolated
(``python -I -S``).  Must keep no namespace alive.
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

OURS = "nfnetlink_log"
NONE = "NONE"  # no logger at all

_SETTING = "/proc/sys/net/netfilter/nf_log"  # of the namespace of the thread that opens it
_PREFIX = "nf_log-"
_LOCK = "nf_log.lock"
_PATIENCE = 5.0  # s, for another process that has the lock
_MOST = 8192  # bytes of a file
_KEYS = ("boot", "pidns", "pid", "start", "inode", "cookie", "old")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SO_NETNS_COOKIE = 71  # never the same again until the next boot; Linux 5.14
_PF_BIND, _PF_UNBIND = 3, 4  # enum nfulnl_msg_config_cmds

_libc = ctypes.CDLL(None, use_errno=True)


class Gone(Exception):
    """The namespace does not exist any more."""


class State:
    """One file: who has changed what, where.  `old`: logger by NFPROTO."""

    __slots__ = ("boot", "cookie", "inode", "old", "path", "pid", "pidns", "start")

    def __init__(self, path: str, inode: int, cookie: int, old: dict[int, str]) -> None:
        """Of the calling process.  `path` leads to the namespace; `cookie`: 0 is not known."""
        self.boot = boot_id()
        self.pidns = os.stat("/proc/self/ns/pid").st_ino
        self.pid = os.getpid()
        self.start = started(self.pid) or 0
        self.inode = inode
        self.cookie = cookie
        self.old = old
        self.path = path

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{_PREFIX}{self.inode}-{self.pidns}-{self.pid}"

    @property
    def title(self) -> str:
        """What people call the namespace."""
        if os.path.dirname(self.path).endswith("/netns"):
            name = os.path.basename(self.path)
            return name if name.isprintable() else ascii(name)
        return str(self.inode)

    def same_namespace(self, other: State) -> bool:
        """Is it about the one that `other` is about?"""
        mine, theirs = (self.boot, self.inode, self.cookie), (other.boot, other.inode, other.cookie)
        return mine == theirs

    @property
    def alive(self) -> bool:
        """May its process still be there?  Where that cannot be seen: yes."""
        if self.boot != boot_id():
            return False
        if self.pidns != os.stat("/proc/self/ns/pid").st_ino:
            return True
        began = started(self.pid)
        return began == self.start or began == 0

    def text(self) -> bytes:
        """As the file has it; the path last, for it may hold anything."""
        old = ",".join(f"{family}={name}" for family, name in self.old.items())
        values = (self.boot, self.pidns, self.pid, self.start, self.inode, self.cookie, old)
        lines = [f"{key} {value}\n" for key, value in zip(_KEYS, values, strict=True)]
        return "".join(lines).encode() + b"path " + os.fsencode(self.path)

    @classmethod
    def of(cls, text: bytes) -> State:
        """Raises ValueError for what `text` cannot have written."""
        lines = text.split(b"\n", len(_KEYS))
        if len(lines) != len(_KEYS) + 1:
            raise ValueError(f"{len(lines)} lines")
        said = []
        for key, line in zip((*_KEYS, "path"), lines, strict=True):
            if not line.startswith(key.encode() + b" "):
                raise ValueError(f"{key} is missing")
            said.append(line[len(key) + 1 :])
        one = cls.__new__(cls)
        one.boot = said[0].decode("ascii")
        one.pidns, one.pid, one.start, one.inode, one.cookie = map(int, said[1:6])
        one.old = {}
        for pair in said[6].decode("ascii").split(","):
            family, _, name = pair.partition("=")
            if not 0 <= int(family) <= 255 or not name.replace("_", "").isalnum():
                raise ValueError(f"no logger is called {pair!r}")
            one.old[int(family)] = name
        one.path = os.fsdecode(said[7])
        return one


def boot_id() -> str:
    """Another one after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: None: there is none, 0: not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return 0
    # One that has ended and is not waited for has no descriptor left.
    return None if words[0] in (b"Z", b"X") else int(words[19])


# -- files


def folders() -> list[str]:
    """Where files may be, the best first."""
    places = ["/run/ipttrace"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(os.path.join(runtime, "ipttrace"))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places.append(os.path.join(cache, "ipttrace", "state"))
    return [place for place in places if os.path.isabs(place)]


def usable(folder: str) -> bool:
    """Is it ours, and may nobody else write there?"""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return False
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)


def folder() -> str | None:
    """The first where files can be written; it is made where it was not."""
    for place in folders():
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.mkdir(place, 0o700)
        if usable(place):
            return place
    return None


@contextlib.contextmanager
def locked(place: str, patience: float = _PATIENCE) -> Iterator[None]:
    """Nobody else reads or writes files, or settings for the sake of them.  Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(os.path.join(place, _LOCK), flags, 0o600)
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


def states(place: str) -> list[State]:
    """What the files say; what is none of ours or broken is removed.  Needs the lock."""
    found = []
    for name in sorted(os.listdir(place)):
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(place, name)
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


def write(place: str, state: State) -> None:
    """On disk when this returns.  Needs the lock.  Raises OSError."""
    path = os.path.join(place, state.name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(f"{place}/.{state.name}", flags, 0o600)
    try:
        os.write(fd, state.text())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{place}/.{state.name}", path)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(place: str, state: State) -> None:
    """Needs the lock."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, state.name))


# -- the setting, in the calling thread's namespace


def cookie() -> int:
    """Of the namespace; 0: this kernel has none."""
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(raw, sys.byteorder)


def logger(family: int) -> str:
    """Its name, or NONE.  Raises OSError."""
    with open(f"{_SETTING}/{family}", encoding="utf-8", errors="backslashreplace") as file:
        return file.read().strip()


def writable() -> bool:
    """Can every name be set?  Where not, OURS and NONE still can."""
    try:
        os.close(os.open(f"{_SETTING}/2", os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def set_logger(family: int, name: str) -> None:
    """Raises OSError: ENOENT where the kernel has no such logger."""
    try:
        fd = os.open(f"{_SETTING}/{family}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        if name not in (OURS, NONE):
            raise
        # Containers have /proc/sys read-only as a rule.
        _bind(family, _PF_BIND if name == OURS else _PF_UNBIND)
        return
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)


def _bind(family: int, command: int) -> None:
    """The same by netlink: NFULNL_MSG_CONFIG with nothing but a command."""
    import socket
    import struct

    netfilter, config, request_ack = 12, 4 << 8 | 1, 5
    head = struct.pack("=IHHII", 28, config, request_ack, 1, 0)
    order = head + struct.pack("=BBHHHB3x", family, 0, 0, 5, 1, command)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netfilter) as sock:
        sock.sendto(order, (0, 0))
        number = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


def put_back(state: State) -> list[int]:
    """The families whose old logger is there again, of those that are still as we left them.

    The calling thread enters the namespace and comes back.  Raises Gone, OSError.
    """
    done = []
    with _inside(state):
        for family, old in state.old.items():
            if old == OURS or logger(family) != OURS:
                continue
            try:
                set_logger(family, old)
            except FileNotFoundError:
                set_logger(family, NONE)  # its module has been unloaded
            done.append(family)
    return done


@contextlib.contextmanager
def _inside(state: State) -> Iterator[None]:
    """As ruleset_save.inside, but finds the namespace wherever it is."""
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
    for path in _places(state.path):
        try:
            if os.stat(path).st_ino != state.inode:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            # Processes that have more rights than we do are elsewhere, as a rule.
            if path == state.path:
                raise
            continue
        except OSError:
            continue
        if os.fstat(fd).st_ino == state.inode:
            return fd
        os.close(fd)
    raise Gone


def _places(path: str) -> Iterator[str]:
    """Where a namespace that was at `path` may be found."""
    yield path
    for folder, rest in (("/run/netns", ""), ("/proc", "/ns/net")):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if not rest or name.isdigit():
                    yield f"{folder}/{name}{rest}"


def _setns(fd: int) -> None:
    # os.setns() comes with Python 3.12.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# -- to be done for a process that has ended, or is about to


def settle(place: str, state: State) -> list[int]:
    """Puts back what `state` says, unless another process still needs it, and forgets it.

    Returns the families that were put back.  Needs the lock.  Raises OSError, and the
    file stays.
    """
    done = []
    others = [one for one in states(place) if one.name != state.name and one.alive]
    if not any(one.same_namespace(state) for one in others):
        with contextlib.suppress(Gone):
            done = put_back(state)
    remove(place, state)
    return done


def main(arguments: list[str]) -> int:
    """`arguments`: the folder, and the process whose end to wait for: by a pipe at
    descriptor 0, or its pidfd, for others may have inherited the pipe."""
    place, pid = arguments[0], int(arguments[1])
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
    with locked(place, 60.0):
        for state in states(place):
            if (state.pid, state.pidns) == (pid, mine):
                with contextlib.suppress(OSError):
                    settle(place, state)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
