# SPDX-License-Identifier: GPL-2.0-only
"""Running things inside named network namespaces.

A short-lived thread enters the namespace, so the caller's own never changes.
What it makes there (sockets, child processes) stays there and may be used by
any thread afterwards.  Must not import bcc, pyroute2 or a user interface.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_NAMED = "/run/netns"  # ip-netns(8)


class NetworkError(Exception):
    """The lab network cannot be made or used; the text is one clear line."""


def netns_path(ns: str) -> str:
    """The file that stands for the named namespace."""
    return f"{_NAMED}/{ns}"


def netns_inode(ns: str) -> int:
    """The namespace's inode number, which is what a record's netns holds."""
    try:
        return os.stat(netns_path(ns)).st_ino
    except OSError as error:
        raise NetworkError(f"no network namespace {ns}: {error.strerror}") from None


def enter(ns: str) -> None:
    """Take the calling thread to the namespace, for good.  Raises NetworkError."""
    try:
        fd = os.open(netns_path(ns), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"no network namespace {ns}: {error.strerror}") from None
    try:
        # os.setns() comes with Python 3.12.
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise NetworkError(f"cannot enter network namespace {ns}: {reason} (run as root)")
    finally:
        os.close(fd)


def call_in(ns: str, function: Callable[[], T]) -> T:
    """Run function in the namespace; its result, or its exception, is the caller's.

    Raises NetworkError if the namespace is not there or must not be entered.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter(ns)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=f"in {ns}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def socket_in(ns: str, family: int, kind: int, proto: int = 0) -> socket.socket:
    """A socket that lives in the namespace."""
    return call_in(ns, lambda: socket.socket(family, kind, proto))


def run_in(
    ns: str, argv: Sequence[str], *, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in the namespace with text on its stdin.

    Raises NetworkError with the command's own words if it cannot be started,
    or fails and check is set.
    """
    return call_in(ns, lambda: run(argv, text=text, check=check))


def run(
    argv: Sequence[str], *, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command here; otherwise as run_in()."""
    try:
        done = subprocess.run(
            argv,
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise NetworkError(f"{argv[0]} is not installed (Debian: apt install iptables)") from None
    except OSError as error:
        raise NetworkError(f"cannot run {argv[0]}: {error.strerror}") from None
    if check and done.returncode != 0:
        words = " / ".join((done.stderr or done.stdout).split("\n")).strip(" /")
        raise NetworkError(f"{' '.join(argv)} failed ({done.returncode}): {words}")
    return done
