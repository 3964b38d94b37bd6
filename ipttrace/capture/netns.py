# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: looked up by name, process id or path, and entered.

A namespace is identified by its inode; a path may later lead to another one, or
nowhere.  Nothing here keeps a namespace alive.  Must not start processes or open
sockets.
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
    if not name or "\0" in name:
        raise CaptureError("the name of the network namespace is empty")
    candidates = [NAMED / name] if "/" not in name else [Path(name)]
    if name.isdigit():
        candidates.append(Path("/proc") / name / "ns" / "net")
    for path in candidates:
        try:
            known = path.parent == NAMED or Path("/proc") in path.parents
            if known and (number := _number(path)):
                return number
        except OSError:
            continue
    raise CaptureError(
        f"there is no network namespace {name!r}: run ip netns list to see which there are"
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


def title(path: str, inode: int) -> str:
    """Returns what messages call the namespace `inode`, to which `path` leads."""
    name = path.rsplit("/", 1)[-1] if "/netns/" in path else str(inode)
    return f"network namespace {name}"


def current() -> int:
    """Returns the inode of the calling thread's namespace.  Raises OSError."""
    return os.stat(_THREAD).st_ino


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
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(there).st_ino != inode:
                raise FileNotFoundError(path)
            setns(there)
        finally:
            os.close(there)
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
