# SPDX-License-Identifier: GPL-2.0-only
"""How the copy's processes give up all rights over the host.

They have a user namespace of their own, in which they are root.  Outside they are the user who
runs the program; if that is root, they are the user nobody, provided that nobody can read the
program's files.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

from ipttrace import namespaces
from ipttrace.capture.netlink.legacy import logger_guard

_NOBODY: Final = 65534
_PR_SET_DUMPABLE: Final = 4  # include/uapi/linux/prctl.h
_NEWNET: Final = 0x40000000
_REMEDY: Final = "allow user namespaces, or use `ipttrace lab -- ipttrace whatif …`"


def confine() -> None:
    """Moves this process, which must have one thread, into new namespaces.

    Raises namespaces.NamespaceError.
    """
    if os.geteuid() == 0 and _others_read(sys.executable) and _others_read(logger_guard.__file__):
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError as error:
            raise namespaces.NamespaceError(f"cannot change the user: {error.strerror}") from None
        # Otherwise /proc/self belongs to root, and no user can be mapped.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    namespaces.unshare_all(_REMEDY, confined=True)


def mount_proc() -> None:
    """Mounts a /proc, if the host allows it; called by the first process in there."""
    namespaces.mount_proc(True, _REMEDY)


def name_network(name: str) -> None:
    """Gives this process's network namespace a name, as `ip netns` does.  Raises OSError."""
    folder = Path("/run/netns")
    folder.mkdir(exist_ok=True)
    target = folder / name
    target.touch()
    namespaces.bind("/proc/self/ns/net", str(target))


def new_network() -> None:
    """Moves this process into a new network namespace.  Raises OSError."""
    namespaces.unshare(_NEWNET)


def _others_read(path: str) -> bool:
    real = Path(path).resolve()
    try:
        return bool(real.stat().st_mode & 0o004) and all(
            folder.stat().st_mode & 0o001 for folder in real.parents
        )
    except OSError:
        return False
