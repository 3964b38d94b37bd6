# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: looked up by name, process id or path, and entered.

A namespace is identified by its inode; a path may later lead to another one, or
nowhere.  Nothing here keeps a namespace alive, except for the moment of
a `with`.  Must not start processes or open sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError

NAMED: Final = Path("/run/netns")
ALL: Final = "all"  # the value of --netns that means every namespace

_OWN: Final = "/proc/self/ns/net"
_THREAD: Final = "/proc/thread-self/ns/net"
_FIRST: Final = "/proc/1/ns/net"
_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)


def inode(name: str) -> int:
    """Returns the inode of the namespace `name`: as in `ip netns`, a process id or a path.

    Raises CaptureError if there is none.
    """
    with opened(name) as fd:
        return os.fstat(fd).st_ino


def problem(name: str) -> str:
    """Returns why there is no namespace `name`, as in `inode`; "" if there is one."""
    try:
        inode(name)
    except CaptureError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def opened(name: str) -> Iterator[int]:
    """A descriptor of the namespace `name`, as in `inode`, which keeps it alive meanwhile.

    Raises CaptureError if there is none.
    """
    fd = _open(name)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(name: str) -> int:
    if not name or "\0" in name:
        raise CaptureError("the name of the network namespace is empty")
    candidates = [NAMED / name] if "/" not in name else [Path(name)]
    if name.isdigit():
        candidates.append(Path("/proc") / name / "ns" / "net")
    for path in candidates:
        try:
            known = path.parent == NAMED or Path("/proc") in path.parents
            if not known or not _number(path):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        if os.fstat(fd).st_dev == os.stat(_OWN).st_dev:
            return fd
        os.close(fd)
    raise CaptureError(
        f"there is no network namespace {name!r}: ip netns list shows those that exist"
    )


def names() -> dict[int, str]:
    """Returns inode → name: of the namespace of process 1 ("init") and of all named ones."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        found[os.stat(_FIRST).st_ino] = "init"
    with contextlib.suppress(OSError):
        for path in NAMED.iterdir():
            with contextlib.suppress(OSError):
                if number := _number(path):
                    found[number] = path.name
    return found


class NewNames:
    """Names that namespaces get after those that are known.  For one thread."""

    def __init__(self, known: dict[int, str]) -> None:
        self._known = dict(known)
        self._seen: int | None = None  # of the folder's last change
        self._settled = False

    def take(self) -> dict[int, str]:
        """Returns inode → name of what is new or was renamed since the last call."""
        try:
            changed = os.stat(NAMED).st_mtime_ns
        except OSError:
            return {}
        # `ip netns add` mounts the namespace a moment after it has made the file.
        if changed == self._seen and self._settled:
            return {}
        self._settled, self._seen = changed == self._seen, changed
        found = {inode: name for inode, name in names().items() if self._known.get(inode) != name}
        self._known.update(found)
        return found


def paths(only: int | None) -> dict[int, str]:
    """Returns inode → path, of every namespace that has a name or a process.

    `only`: the inode of the one namespace to return, None for all.
    """
    found: dict[int, str] = {}
    try:
        pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)
    except OSError:
        pids = []
    # The last path found for an inode wins: names outlive processes.
    paths = [f"/proc/{pid}/ns/net" for pid in pids]
    with contextlib.suppress(OSError):
        paths += [str(path) for path in NAMED.iterdir()]
    for path in [*paths, _OWN]:
        with contextlib.suppress(OSError):
            if number := _number(path):
                found[number] = path
    if only is not None:
        return {inode: path for inode, path in found.items() if inode == only}
    return found


def path_to(name: str, inode: int) -> str:
    """Returns a path that leads to the namespace `inode`, called `name` as in `inode()`.

    If there is none, the path returned does not lead to it, and `inside` refuses it.
    """
    candidates = [NAMED / name, Path(_FIRST)]
    candidates += [Path("/proc") / name / "ns" / "net"] if name.isdigit() else []
    candidates += [Path(name)] if "/" in name else []
    for path in candidates:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                return str(path)
    return str(candidates[0])


def traced(home: int, only: str | None) -> dict[int, tuple[str, str]]:
    """Returns inode → name and path, of all traced namespaces: `home` and those with a name.

    `only`: the one namespace that is traced, as `inode` takes it; None for all.
    """
    known = names()
    if only is None:
        known = {home: known.get(home, ""), **known}
        return {number: (name, path_to(name, number)) for number, name in known.items()}
    try:
        number = inode(only)
    except CaptureError:
        return {}  # deleted
    own = "" if only.startswith("/proc/self/") else only
    return {number: (known.get(number, own), path_to(only, number))}


def title(path: str, inode: int) -> str:
    """Returns what messages call the namespace `inode`, to which `path` leads."""
    name = path.rsplit("/", 1)[-1] if "/netns/" in path else str(inode)
    return f"network namespace {name}"


def initial() -> int:
    """Returns the inode of the initial namespace, 0 if /proc does not show it."""
    try:
        return os.stat(_FIRST).st_ino
    except OSError:
        return 0


def current() -> int:
    """Returns the inode of the calling thread's namespace.  Raises OSError."""
    return os.stat(_THREAD).st_ino


@contextlib.contextmanager
def held(path: str, inode: int) -> Iterator[int]:
    """A descriptor of the namespace `inode` at `path`, which keeps it alive meanwhile.

    Raises FileNotFoundError if `path` does not lead to the namespace, OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError(path)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def inside(path: str, inode: int) -> Iterator[None]:
    """Moves the calling thread, and what it starts, into the namespace `inode` at `path`.

    The thread returns when the context ends.  Raises FileNotFoundError if `path` does not
    lead to the namespace, OSError if it cannot be entered.
    """
    home = os.open(_THREAD, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(home).st_ino == inode:
            yield
            return
        with held(path, inode) as there:
            setns(there)
        try:
            yield
        finally:
            setns(home)
    finally:
        os.close(home)


def setns(fd: int) -> None:
    """Moves the calling thread into the network namespace that `fd` refers to.

    Raises OSError.
    """
    # os.setns() comes with Python 3.12.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _number(path: str | Path) -> int:
    """Returns the inode, or 0 if the file is no namespace.  Raises OSError.

    `ip netns add` makes a plain file first and mounts the namespace on it later.
    """
    found = os.stat(path)
    return found.st_ino if found.st_dev == os.stat(_OWN).st_dev else 0
