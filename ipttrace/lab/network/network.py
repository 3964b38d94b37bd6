# SPDX-License-Identifier: GPL-2.0-only
"""The lab network as an object: sets it up, loads its rules, reads counters, removes it.

Must not send traffic, nor import bcc or pyroute2.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, TypeVar

from ipttrace.lab.network import rules
from ipttrace.lab.network.counters import Counters, read_counters
from ipttrace.lab.network.layout import DEVICES, FORWARDING, ROLES, SYSCTLS, ip_batches
from ipttrace.lab.network.links import LINK_WAIT, link_events, wait_running
from ipttrace.lab.network.load import load, preload, restore, save
from ipttrace.lab.network.lock import lock, unlock
from ipttrace.lab.network.ns import NetworkError, call_in, netns_inode, netns_path, run, run_in

T = TypeVar("T")

BACKENDS: Final = ("legacy", "nft")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class Network:
    """A context manager: the namespaces PREFIX-client, PREFIX-router and PREFIX-server.

    Networks with different prefixes can exist side by side.  Entering first
    removes what a killed process left under this prefix.

    `backend` loads the rules with iptables-legacy ("legacy") or iptables-nft
    ("nft").  `missing` lists the iptables matches and targets that this kernel
    lacks: an error if `strict`, else the rules that need them are left out, which
    shifts later rule numbers.  `families` is (4, 6), or (4,) on a kernel
    without IPv6.
    """

    def __init__(
        self, prefix: str = "ipt", *, strict: bool = True, backend: str = "legacy"
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise NetworkError(
                f"bad prefix {prefix!r}: use 1 to 32 letters, digits, '_', '.' or '-'"
            )
        if backend not in BACKENDS:
            raise NetworkError(f"unknown backend {backend!r}: use 'legacy' or 'nft'")
        self.prefix = prefix
        self.strict = strict
        self.backend = backend
        self.missing: list[str] = []
        self.families = (4, 6) if os.path.exists("/proc/net/if_inet6") else (4,)
        self._lock: int | None = None

    def ns(self, role: str) -> str:
        """Returns the name of a role's namespace; any other name is returned unchanged."""
        return f"{self.prefix}-{role}" if role in ROLES else role

    @property
    def client(self) -> str:
        return self.ns("client")

    @property
    def router(self) -> str:
        return self.ns("router")

    @property
    def server(self) -> str:
        return self.ns("server")

    def inodes(self) -> dict[str, int]:
        """Returns role → inode of its namespace, as in records and rows."""
        return {role: netns_inode(self.ns(role)) for role in ROLES}

    def __enter__(self) -> Network:
        self._lock = lock(self.prefix)
        try:
            _remove(self.prefix)
            self._setup()
        except BaseException:
            self._teardown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._teardown()

    @staticmethod
    def remove_stale(prefix: str = "ipt") -> list[str]:
        """Removes what a killed process left; returns the names of the namespaces.

        Raises NetworkError if the network is in use.
        """
        held = lock(prefix)
        try:
            return _remove(prefix)
        finally:
            unlock(prefix, held)

    def _setup(self) -> None:
        if os.geteuid() != 0:
            raise NetworkError("the lab network needs root: use sudo, or the lab VM")
        modules = self._preload()
        run(["ip", "-batch", "-"], text="".join(f"netns add {self.ns(r)}\n" for r in ROLES))
        for role in ROLES:
            call_in(self.ns(role), lambda: _set_sysctls(SYSCTLS))
        with contextlib.ExitStack() as stack:
            links = {role: stack.enter_context(link_events(self.ns(role))) for role in ROLES}
            batches = ip_batches(self.client, self.server, ipv6=6 in self.families)
            for role, text in batches.items():
                run_in(self.ns(role), ["ip", "-batch", "-"], text=text)
            call_in(self.router, lambda: _set_sysctls(FORWARDING))
            if modules is not None:
                modules.wait()
            self._load_rules()
            deadline = time.monotonic() + LINK_WAIT
            for role in ROLES:
                wait_running(links[role], self.ns(role), len(DEVICES[role]), deadline)

    def _teardown(self) -> None:
        try:
            _remove(self.prefix)
        finally:
            if self._lock is not None:
                unlock(self.prefix, self._lock)
                self._lock = None

    def _preload(self) -> subprocess.Popen[bytes] | None:
        """Starts loading kernel modules; None if there is nothing to wait for."""
        return preload()

    def _load_rules(self) -> None:
        for role in ROLES:
            for family in self.families:
                self._load(role, family, rules.ruleset(role, family))

    def _load(self, role: str, family: int, text: str) -> None:
        command = restore(self.backend, family)
        absent = load(self.ns(role), command, text, strict=self.strict)
        self.missing += [name for name in absent if name not in self.missing]

    def add_synproxy(self) -> None:
        """Puts SYNPROXY (a target that steals packets) before the server's port 8888.

        The router's rule numbers grow by two in FORWARD and by one in raw
        PREROUTING.  Raises NetworkError if the kernel has no SYNPROXY.
        """
        loose = {"netfilter/nf_conntrack_tcp_loose": "0"}
        call_in(self.router, lambda: _set_sysctls(loose))
        for family in (4, 6):
            command = restore(self.backend, family)
            load(self.router, command, rules.synproxy(family), keep=True, strict=True)

    def counters(self, ns: str, family: int = 4) -> Counters:
        """Returns the counters of a role's rules, from `iptables-save -c`.

        (table, chain, rulenum) → (packets, bytes); rulenum as in `iptables -L
        --line-numbers`, 0 for the policy of a built-in chain.
        """
        done = run_in(self.ns(ns), [save(self.backend, family), "-c"])
        return read_counters(done.stdout)

    def run(
        self, ns: str, argv: Sequence[str], *, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in a role's namespace; see ns.run_in()."""
        return run_in(self.ns(ns), argv, text=text, check=check)

    def call(self, ns: str, function: Callable[[], T]) -> T:
        """Calls a function in a role's namespace, in a thread; see ns.call_in()."""
        return call_in(self.ns(ns), function)


def _remove(prefix: str) -> list[str]:
    names = [f"{prefix}-{role}" for role in ROLES]
    existing = [name for name in names if os.path.lexists(netns_path(name))]
    for name in existing:
        # A socket that is still open keeps its namespace alive: without links no
        # packet passes through it any more.
        for device in ("lan0", "wan0", "eth0"):
            with contextlib.suppress(NetworkError):
                call_in(name, lambda device=device: _link_delete(device))  # type: ignore[misc]
    if existing:
        run(["ip", "-batch", "-"], text="".join(f"netns del {name}\n" for name in existing))
    return existing


def _link_delete(device: str) -> None:
    if device in {name for _, name in socket.if_nameindex()}:
        run(["ip", "link", "del", device], check=False)


def _set_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        try:
            with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                file.write(value + "\n")
        except FileNotFoundError:
            continue  # an older kernel has neither the setting nor what it turns off
        except OSError as error:
            raise NetworkError(f"cannot set net/{name} to {value!r}: {error.strerror}") from None
