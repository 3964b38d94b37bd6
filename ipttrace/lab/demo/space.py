# SPDX-License-Identifier: GPL-2.0-only
"""Namespaces of its own for a process and all that it starts: nothing outside changes.

Network, mounts and processes; for an ordinary user a user namespace around
them, in which it is root.  All go with the last process in them, and all
processes with the first one: there is nothing to be cleaned up.  Must not run
programs, nor import anything of ipttrace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import Final

# include/uapi/linux/sched.h
_NEWNS: Final = 0x00020000
_NEWUSER: Final = 0x10000000
_NEWPID: Final = 0x20000000
_NEWNET: Final = 0x40000000
_ALL: Final = _NEWNS | _NEWPID | _NEWNET
# include/uapi/linux/mount.h
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_BIND, _REC, _PRIVATE = 4096, 16384, 1 << 18
_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h

_RUN: Final = "/run"
# Of /run, what ip-netns, iptables and the lab network keep there; it is theirs anew.
_FRESH: Final = ("netns", "xtables.lock", "ipttrace")
# What forbids an ordinary user a user namespace, and the value that does.
_SWITCHES: Final = {
    "user.max_user_namespaces": "0",
    "kernel.unprivileged_userns_clone": "0",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
}


class SpaceError(Exception):
    """There are no namespaces to be had; one line says why, and what to do."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process, its main thread's child, when process `parent` dies.

    0: a parent in another process namespace, which has no number here.
    """
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def leave() -> bool:
    """Take this process, which must have one thread, to namespaces of its own.

    Its next child is the first process of the new process namespace; this one
    stays in the old, and may wait for it.  True: it is root in a user namespace
    only, and may do nothing to what is outside.  Raises SpaceError.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        apart = uid != 0 or not _unshared(_ALL)
        if apart:
            _become_root(uid, gid)
            _unshare(_ALL)
        _mount("none", "/", "", _REC | _PRIVATE)
        _own_run()
    except OSError as error:
        raise SpaceError(_why_not(uid, error)) from None
    return apart


def own_proc(apart: bool) -> None:
    """To be called by the first process of the process namespace: /proc shows it and its like.

    `apart`, from leave(): then /proc may stay as it was, as where a container
    hides parts of it.  Else SpaceError: what looks for all namespaces would find
    the host's.
    """
    try:
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except OSError as error:
        if not apart:
            raise SpaceError(_why_not(0, error)) from None


def _unshared(kinds: int) -> bool:
    """False: it is not allowed to, as root in a container often is not."""
    try:
        _unshare(kinds)
    except PermissionError:
        return False
    return True


def _become_root(uid: int, gid: int) -> None:
    _unshare(_NEWUSER)
    # user_namespaces(7): without this an ordinary user may map no group.
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1", "ascii")


def _own_run() -> None:
    """An empty /run, to write to, with what is in the old one but for `_FRESH`.

    Programs may be there (NixOS), or this very one.
    """
    old = os.open(_RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(set(os.listdir(_RUN)) - set(_FRESH))
        _mount("tmpfs", _RUN, "tmpfs", _NOSUID | _NODEV, "mode=755,size=16m")
        for name in names:
            # Not everything in there is everybody's.
            with contextlib.suppress(OSError):
                _show_again(f"/proc/self/fd/{old}/{name}", f"{_RUN}/{name}")
    finally:
        os.close(old)


def _show_again(old: str, new: str) -> None:
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
        os.mkdir(new)
        _mount(old, new, "", _BIND | _REC)


def _unshare(kinds: int) -> None:
    # os.unshare() comes with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(kinds) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    names = (source.encode(), target.encode(), kind.encode() or None)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def _why_not(uid: int, error: OSError) -> str:
    reason = str(error.strerror)
    if uid == 0:
        who, mend = "root here", "use `ipttrace lab`, which boots a virtual machine"
    else:
        who = "an ordinary user"
        mend = "use `sudo ipttrace demo`, or `ipttrace lab`, which boots a virtual machine"
    if uid != 0 or error.errno == errno.ENOSPC:
        for name, forbids in _SWITCHES.items():
            with contextlib.suppress(OSError):
                value = Path("/proc/sys", *name.split(".")).read_text("ascii").strip()
                if value == forbids:
                    reason = f"{name} is {value}"
                    break
    return f"this host gives {who} no namespaces ({reason}): {mend}"
