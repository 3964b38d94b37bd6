# SPDX-License-Identifier: GPL-2.0-only
"""The legacy tables of the calling thread's namespace, as iptables-legacy-save prints them.

Only tables that exist are read: asking for another would create it.  Comments may
hold quotes, backslashes and newlines, so that the output is parsed strictly and the
number of rules compared with the kernel's.  Must not import or call an engine.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.ready import readable

COMMANDS: Final = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}
_NAMES: Final = {4: "ip_tables_names", 6: "ip6_tables_names"}
# Bytes of output that are read at most: some 200,000 rules.
_MOST: Final = 24 << 20
# A command that takes longer is killed, s.
_PATIENCE: Final = 60.0

# linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h
_SO_GET_INFO: Final = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_LEVELS: Final = {4: (socket.AF_INET, socket.SOL_IP), 6: (socket.AF_INET6, 41)}
# struct ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size
_INFO: Final = struct.Struct("=32sI5I5III")

_libc = ctypes.CDLL(None, use_errno=True)

# xtables_save_string() of libxtables quotes what is not a plain word, except the names of
# devices, which it writes unchanged.
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


# The extension of iptables for the module's target, where it is built or installed with ipttrace,
# and the folders of the host's own extensions: the first that exists is in use.
_EXTENSION: Final = "libxt_IPTTRACE.so"
_BUILT: Final = (
    Path(__file__).resolve().parents[2] / "build" / "xtables",
    Path("/usr/lib/ipttrace/xtables"),
)
_EXTENSIONS: Final = (
    Path(f"/usr/lib/{platform.machine()}-linux-gnu/xtables"),
    Path("/usr/lib64/xtables"),
    Path("/usr/lib/xtables"),
)
# What the save commands of legacy tables and of iptables-nft say without it.
_NO_EXTENSION: Final = ("library for target `IPTTRACE'", "target extension not found")


class CommandMissing(CaptureError):
    """iptables-legacy-save is not installed."""


class Unreadable(Exception):
    """The output cannot be parsed, or its number of rules differs from the kernel's."""


@dataclass(slots=True)
class Chain:
    """A chain: its rules in order, without ``-A CHAIN``, and the counters of each.

    Counters are packets and bytes.  A user-defined chain has no policy.
    """

    policy: str | None
    policy_counters: tuple[int, int] | None
    rules: list[str] = field(default_factory=list)
    counters: list[tuple[int, int]] = field(default_factory=list)


Table = dict[str, Chain]
"""Chains by name."""


def parse(text: str) -> dict[str, Table]:
    """Returns the tables in the output of iptables-save -c, by name.  Raises Unreadable."""
    tables: dict[str, Table] = {}
    chains: Table | None = None
    at = 0
    while at < len(text):
        line = _LINE.match(text, at)
        if line is None:
            raise Unreadable(f"cannot parse {text[at : at + 60]!r}")
        at = line.end()
        if line["of"] is not None:
            chain = None if chains is None else chains.get(line["of"])
            if chain is None:
                raise Unreadable(f"a rule in the undeclared chain {line['of'][:60]!r}")
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
        raise Unreadable("the output ends before COMMIT")
    return tables


def command(family: int) -> str | None:
    """Returns the path of the save command for `family`, 4 or 6; None if not installed."""
    name = COMMANDS[family]
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def names(family: int) -> list[str]:
    """Returns the names of the tables in the thread's namespace.  `family`: 4 or 6."""
    try:
        raw = Path("/proc/thread-self/net", _NAMES[family]).read_bytes()
    except FileNotFoundError:
        return []
    return raw.decode("utf-8", "backslashreplace").split()


def read(family: int) -> dict[str, Table]:
    """Returns all tables of the thread's namespace by name.  `family`: 4 or 6.

    Raises CommandMissing; CaptureError if the command fails; Unreadable, OSError.
    """
    tables = _printed(family)
    for name, chains in tables.items():
        entries = _entries(family, name)
        # In the kernel each chain ends in an entry for its policy or return, a user-defined
        # chain begins with one for its name, and one ends the table.
        printed = 1 + sum(
            len(chain.rules) + (2 if chain.policy is None else 1) for chain in chains.values()
        )
        if entries != printed:
            raise Unreadable(
                f"table {name} has {entries} entries, but {COMMANDS[family]} printed {printed}"
            )
    return tables


def read_table(family: int, table: str) -> Table:
    """Returns one table, which exists; how many entries it has is not compared.

    Raises as `read` does.
    """
    return _printed(family, "-t", table).get(table, {})


def _printed(family: int, *options: str) -> dict[str, Table]:
    path = command(family)
    if path is None:
        raise CommandMissing(f"{COMMANDS[family]} is missing (apt install iptables)")
    return parse(run([path, "-c", *options]).decode("utf-8", "backslashreplace"))


class _ExtensionMissing(CaptureError):
    """iptables cannot print a rule with -j IPTTRACE."""


class _Interrupted(CaptureError):
    """Ctrl-C has reached the command, before it was in a process group of its own."""


def run(argv: list[str]) -> bytes:
    """Returns the standard output of a command.

    It is run again if Ctrl-C has reached it, which is not for it.  If iptables has no extension
    for -j IPTTRACE, it gets that of ipttrace.  Raises CaptureError if it fails or takes too
    long, Unreadable if it prints too much, OSError.
    """
    try:
        return _extended(argv)
    except _Interrupted:
        return _extended(argv)


def _extended(argv: list[str]) -> bytes:
    try:
        return _run(argv, {})
    except _ExtensionMissing:
        found = next((one for one in _BUILT if (one / _EXTENSION).exists()), None)
        if found is None:
            raise
        before = os.environ.get("XTABLES_LIBDIR")
        default = next((one for one in _EXTENSIONS if one.is_dir()), found)
        return _run(argv, {"XTABLES_LIBDIR": f"{before or default}:{found}"})


def _run(argv: list[str], more: dict[str, str]) -> bytes:
    errors = os.memfd_create("ipttrace-stderr")
    try:
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "LC_ALL": "C", **more},
            process_group=0,  # Ctrl-C must not reach it
        ) as process:
            try:
                data = _drain(process)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            first = os.pread(errors, 200, 0).decode("utf-8", "backslashreplace").splitlines()[:1]
            reason = first[0] if first else f"status {process.returncode}"
            if process.returncode == -signal.SIGINT:
                raise _Interrupted(f"{Path(argv[0]).name} was interrupted")
            if any(words in reason for words in _NO_EXTENSION):
                raise _ExtensionMissing(
                    f"{Path(argv[0]).name} cannot print -j IPTTRACE: make install-xtables"
                )
            raise CaptureError(f"{Path(argv[0]).name} fails: {reason}")
        return data
    finally:
        os.close(errors)


def _drain(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    fd = process.stdout.fileno()
    deadline = time.monotonic() + _PATIENCE
    data = bytearray()
    while True:
        if not readable(fd, timeout=max(0.0, deadline - time.monotonic())):
            raise CaptureError(f"{_title(process)} did not end within {_PATIENCE:.0f} s")
        portion = os.read(fd, 1 << 18)
        if not portion:
            return bytes(data)
        data += portion
        if len(data) > _MOST:
            raise Unreadable(f"{_title(process)} printed more than {_MOST >> 20} MB")


def _title(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)
    return Path(process.args[0]).name


def _entries(family: int, table: str) -> int:
    """Returns the number of entries the table has in the kernel.  Raises OSError."""
    domain, level = _LEVELS[family]
    buffer = ctypes.create_string_buffer(_INFO.pack(table.encode()[:31], *[0] * 13), _INFO.size)
    size = ctypes.c_uint32(_INFO.size)
    with socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        done = _libc.getsockopt(sock.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(size))
        if done != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    return int(_INFO.unpack(buffer.raw)[-2])
