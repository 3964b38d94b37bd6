# SPDX-License-Identifier: GPL-2.0-only
"""Runs functions and commands in named network namespaces.

A short-lived thread enters the namespace; the caller's own does not change.
Sockets and child processes created there stay there and can be used by any
thread.  Must not import bcc or pyroute2.
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
    """The lab network cannot be set up or used; the text is one line for the user."""


def netns_path(ns: str) -> str:
    """Returns the path of the namespace's file, see ip-netns(8)."""
    return f"{_NAMED}/{ns}"


def netns_inode(ns: str) -> int:
    """Returns the namespace's inode number, as in a record's netns.  Raises NetworkError."""
    try:
        return os.stat(netns_path(ns)).st_ino
    except OSError as error:
        raise NetworkError(f"no network namespace {ns}: {error.strerror}") from None


def enter(ns: str) -> None:
    """Moves the calling thread into the namespace, permanently.  Raises NetworkError."""
    try:
        fd = os.open(netns_path(ns), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"no network namespace {ns}: {error.strerror}") from None
    try:
        # os.setns() needs Python 3.12.
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise NetworkError(f"cannot enter network namespace {ns}: {reason} (run as root)")
    finally:
        os.close(fd)


def call_in(ns: str, function: Callable[[], T]) -> T:
    """Calls function in the namespace; returns its result or raises its exception.

    Raises NetworkError if the namespace does not exist or cannot be entered.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            enter(ns)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name=f"in {ns}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def socket_in(ns: str, family: int, kind: int, proto: int = 0) -> socket.socket:
    """Returns a new socket of the namespace."""
    return call_in(ns, lambda: socket.socket(family, kind, proto))


def run_in(
    ns: str, argv: Sequence[str], *, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the namespace with text on its stdin.

    Raises NetworkError, with the command's error message, if it cannot be
    started, or if it fails and check is set.
    """
    return call_in(ns, lambda: run(argv, text=text, check=check))


def run(
    argv: Sequence[str], *, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the calling thread's namespace; else as run_in()."""
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
        output = " / ".join((done.stderr or done.stdout).split("\n")).strip(" /")
        raise NetworkError(f"{' '.join(argv)} failed ({done.returncode}): {output}")
    return done
