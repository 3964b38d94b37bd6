# SPDX-License-Identifier: GPL-2.0-only
"""Moves a process into new namespaces: network, mounts and processes.

An ordinary user also gets a user namespace, as root in it.  The namespaces end
with their last process, and all their processes with the first one, so there is
nothing to clean up.  Must not run programs, nor import anything of ipttrace.
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
# Entries of ip-netns, iptables and the lab network in /run, hidden in the new one.
_HIDDEN: Final = ("netns", "xtables.lock", "ipttrace")
# sysctls that can forbid user namespaces, and the value that does.
_FORBIDDING: Final = {
    "user.max_user_namespaces": "0",
    "kernel.unprivileged_userns_clone": "0",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
}


class NamespaceError(Exception):
    """The host allows no namespaces; the text is one line, with what to do."""


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies; exits if that has happened.

    `parent` is 0 for a parent in another process namespace.  The parent must
    have forked from its main thread.
    """
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def unshare_all(remedy: str, *, confined: bool = False) -> bool:
    """Moves this process, which must have one thread, into new namespaces.

    Its next child is the first process of the new process namespace; this
    process stays in the old one and can wait for the child.  Returns whether
    there is a new user namespace, with no privileges outside it; `confined`:
    there is one for root too.  Raises NamespaceError, which ends in `remedy`.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        unprivileged = confined or uid != 0 or not _try_unshare(_ALL)
        if unprivileged:
            _become_root(uid, gid)
            unshare(_ALL)
        _mount("none", "/", "", _REC | _PRIVATE)
        _mount_run()
    except OSError as error:
        raise NamespaceError(_reason(uid, error, remedy)) from None
    return unprivileged


def mount_proc(unprivileged: bool, remedy: str) -> None:
    """Mounts a /proc of the new process namespace; called by its first process.

    `unprivileged` is the result of unshare_all().  If true, a failure is
    ignored: a container that hides parts of /proc forbids the mount.  Otherwise
    it raises NamespaceError, because a search for all network namespaces would find
    the host's.
    """
    try:
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except OSError as error:
        if not unprivileged:
            raise NamespaceError(_reason(0, error, remedy)) from None


def _try_unshare(kinds: int) -> bool:
    """Returns False without permission, which root in a container often lacks."""
    try:
        unshare(kinds)
    except PermissionError:
        return False
    return True


def _become_root(uid: int, gid: int) -> None:
    unshare(_NEWUSER)
    # user_namespaces(7): a condition for an ordinary user to map a group.
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1", "ascii")


def _mount_run() -> None:
    """Mounts a new, writable /run, and the old one's entries except `_HIDDEN` in it.

    Programs may be there (on NixOS), even this one.
    """
    old = os.open(_RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(set(os.listdir(_RUN)) - set(_HIDDEN))
        _mount("tmpfs", _RUN, "tmpfs", _NOSUID | _NODEV, "mode=755,size=16m")
        for name in names:
            # Some entries may be inaccessible to this user.
            with contextlib.suppress(OSError):
                _bind(f"/proc/self/fd/{old}/{name}", f"{_RUN}/{name}")
    finally:
        os.close(old)


def _bind(old: str, new: str) -> None:
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
        os.mkdir(new)
        _mount(old, new, "", _BIND | _REC)


def unshare(kinds: int) -> None:
    """Moves this process into new namespaces of these kinds, CLONE_NEW*.  Raises OSError."""
    # os.unshare() needs Python 3.12.
    if ctypes.CDLL(None, use_errno=True).unshare(kinds) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def bind(old: str, new: str) -> None:
    """Shows the file `old` as `new` too, which must exist.  Raises OSError."""
    _mount(old, new, "", _BIND)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    names = (source.encode(), target.encode(), kind.encode() or None)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def _reason(uid: int, error: OSError, remedy: str) -> str:
    reason = str(error.strerror)
    who = "root" if uid == 0 else "an ordinary user"
    if uid != 0 or error.errno == errno.ENOSPC:
        for name, forbids in _FORBIDDING.items():
            with contextlib.suppress(OSError):
                value = Path("/proc/sys", *name.split(".")).read_text("ascii").strip()
                if value == forbids:
                    reason = f"{name} is {value}"
                    break
    return f"{who} cannot create namespaces on this host ({reason}): {remedy}"
