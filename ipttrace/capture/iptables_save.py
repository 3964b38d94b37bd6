# SPDX-License-Identifier: GPL-2.0-only
"""The legacy tables of a namespace, as iptables-legacy-save tells them.

Reads only what is there: a table that does not exist is not asked for, which
would make it.  The caller's thread enters the namespace and comes back; the
namespace is not kept alive.  What the command says is taken apart with care:
comments may hold quotes, backslashes and newlines, and the number of rules is
compared with the kernel's.  Must not touch the engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError

COMMANDS: Final = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}
_NAMES: Final = {4: "ip_tables_names", 6: "ip6_tables_names"}
# What a command may say, in bytes: some 200,000 rules.
_MOST: Final = 24 << 20
# A command that takes longer hangs, s.
_PATIENCE: Final = 60.0

_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_SO_GET_INFO: Final = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_LEVELS: Final = {4: (socket.AF_INET, socket.SOL_IP), 6: (socket.AF_INET6, 41)}
# struct ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size
_INFO: Final = struct.Struct("=32sI5I5III")

_libc = ctypes.CDLL(None, use_errno=True)

# How xtables_save_string() writes what is not a plain word; the names of devices
# are written as they are.
_WORD: Final = r'(?>(?<=\ -[io]\ )[^ \n]++ | "(?:[^"\\]|\\.)*+"(?=[ \n]) | [^ \n]++)'
_LINE: Final = re.compile(
    rf"""
    \#[^\n]*+\n
    | \*(?P<table>[^\n]++)\n
    | :(?P<chain>[^ \n]++)\ (?P<policy>[^ \n]++)\ \[(?P<cp>\d++):(?P<cb>\d++)\]\n
    | \[(?P<p>\d++):(?P<b>\d++)\]\ -A\ (?P<of>[^ \n]++)(?P<rule>(?:\ ++{_WORD})*+)\ *+\n
    | (?P<commit>COMMIT)\n
    """,
    re.VERBOSE | re.DOTALL,
)


class CommandMissing(CaptureError):
    """iptables-legacy-save is not installed."""


class Unreadable(Exception):
    """What the command said is not understood, or does not fit the kernel's word."""


@dataclass(slots=True)
class Chain:
    """A chain's rules in order, and what each has counted: packets, bytes."""

    policy: str | None
    counted: tuple[int, int] | None  # by the policy
    rules: list[str] = field(default_factory=list)
    counters: list[tuple[int, int]] = field(default_factory=list)


Table = dict[str, Chain]


def parse(text: str) -> dict[str, Table]:
    """Tables by name.  Raises Unreadable."""
    tables: dict[str, Table] = {}
    chains: Table | None = None
    at = 0
    while at < len(text):
        line = _LINE.match(text, at)
        if line is None:
            raise Unreadable(f"{text[at : at + 60]!r} is not understood")
        at = line.end()
        if line["of"] is not None:
            chain = None if chains is None else chains.get(line["of"])
            if chain is None:
                raise Unreadable(f"a rule of an unknown chain {line['of'][:60]!r}")
            chain.rules.append(line["rule"].strip(" "))
            chain.counters.append((int(line["p"]), int(line["b"])))
        elif line["chain"] is not None and chains is not None:
            built_in = line["policy"] != "-"
            chains[line["chain"]] = Chain(
                line["policy"] if built_in else None,
                (int(line["cp"]), int(line["cb"])) if built_in else None,
            )
        elif line["table"] is not None:
            chains = tables[line["table"]] = {}
        elif line["commit"] is not None:
            chains = None
    if chains is not None:
        raise Unreadable("the end is missing")
    return tables


def command(family: int) -> str | None:
    """The path of the command, None where it is not installed."""
    name = COMMANDS[family]
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


@contextlib.contextmanager
def inside(path: str, inode: int) -> Iterator[None]:
    """The calling thread, and what it starts, in the namespace `inode` at `path`.

    Raises FileNotFoundError where `path` does not stand for it any more; OSError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(home).st_ino == inode:
            yield
            return
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(there).st_ino != inode:
                raise FileNotFoundError(path)
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    # os.setns() comes with Python 3.12.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def names(family: int) -> list[str]:
    """The tables that exist in the thread's namespace."""
    try:
        raw = Path("/proc/thread-self/net", _NAMES[family]).read_bytes()
    except FileNotFoundError:
        return []
    return raw.decode("utf-8", "backslashreplace").split()


def read(family: int) -> dict[str, Table]:
    """All tables of the thread's namespace.

    Raises CommandMissing, Unreadable; CaptureError where the command fails, OSError.
    """
    path = command(family)
    if path is None:
        raise CommandMissing(f"{COMMANDS[family]} is missing (apt install iptables)")
    tables = parse(run([path, "-c"]).decode("utf-8", "backslashreplace"))
    for name, chains in tables.items():
        told = _entries(family, name)
        # Each chain ends in its policy or a return; a user's begins with its
        # name; and there is one entry at the end of all.
        said = 1 + sum(len(one.rules) + (2 if one.policy is None else 1) for one in chains.values())
        if told != said:
            raise Unreadable(f"table {name} has {told} entries, {COMMANDS[family]} tells {said}")
    return tables


def run(argv: list[str]) -> bytes:
    """What a command writes.  Raises CaptureError, OSError, Unreadable."""
    said = os.memfd_create("ipttrace-said")
    try:
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
            process_group=0,  # the terminal's Ctrl-C is not for it
        ) as process:
            try:
                data = _drain(process)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            first = os.pread(said, 200, 0).decode("utf-8", "backslashreplace").splitlines()[:1]
            reason = first[0] if first else f"status {process.returncode}"
            raise CaptureError(f"{Path(argv[0]).name} fails: {reason}")
        return data
    finally:
        os.close(said)


def _drain(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    fd = process.stdout.fileno()
    deadline = time.monotonic() + _PATIENCE
    data = bytearray()
    while True:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise CaptureError(f"{_title(process)} does not end")
        portion = os.read(fd, 1 << 18)
        if not portion:
            return bytes(data)
        data += portion
        if len(data) > _MOST:
            raise Unreadable(f"{_title(process)} says more than {_MOST >> 20} MB")


def _title(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)
    return Path(process.args[0]).name


def _entries(family: int, table: str) -> int:
    """How many entries the kernel says that a table has."""
    domain, level = _LEVELS[family]
    buffer = ctypes.create_string_buffer(_INFO.pack(table.encode()[:31], *[0] * 13), _INFO.size)
    size = ctypes.c_uint32(_INFO.size)
    with socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        done = _libc.getsockopt(sock.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(size))
        if done != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    return int(_INFO.unpack(buffer.raw)[-2])
