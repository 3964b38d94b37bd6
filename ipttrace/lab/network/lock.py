# SPDX-License-Identifier: GPL-2.0-only
"""A lock file for each prefix: one process at a time owns a lab network.

Must not touch namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from ipttrace.lab.network.ns import NetworkError

_FOLDER: Final = "/run/ipttrace"


def _lock_path(prefix: str) -> str:
    return f"{_FOLDER}/lab-{prefix}.lock"


def lock(prefix: str) -> int:
    """Locks the prefix until unlock() or the end of this process; returns the lock's descriptor.

    The lock distinguishes a network in use from the remains of a killed process.
    Raises NetworkError if another process holds it.
    """
    path = _lock_path(prefix)
    while True:
        try:
            os.makedirs(_FOLDER, mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise NetworkError(f"cannot open {path}: {error.strerror} (run as root)") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise NetworkError(
                f"lab network {prefix!r} is in use by process {owner or '?'}: "
                "end that process, or use another prefix"
            ) from None
        # The previous holder may have removed the file between open and flock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        os.close(fd)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def unlock(prefix: str, fd: int) -> None:
    """Releases what lock() returned."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_lock_path(prefix))
    os.close(fd)
