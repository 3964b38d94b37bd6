# SPDX-License-Identifier: GPL-2.0-only
"""The lab network: client, router and server namespaces with rules in them.

Everything is in namespaces of its own; the host's network is not touched.
Must not import bcc, pyroute2 or a user interface, and sends no traffic
(traffic.py does).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, TypeVar

from ipttrace.lab.network import rules
from ipttrace.lab.network.links import LINK_WAIT, link_events, wait_running
from ipttrace.lab.network.load import load, preload, restore, save
from ipttrace.lab.network.ns import NetworkError, call_in, netns_inode, netns_path, run, run_in

__all__ = ["ROLES", "Network", "NetworkError", "read_counters"]

T = TypeVar("T")
Counters = dict[tuple[str, str, int], tuple[int, int]]

ROLES: Final = ("client", "router", "server")
_LOCKS: Final = "/run/ipttrace"

# Fixed link addresses and permanent neighbours: the first packet needs no ARP
# or ND.  With ARP and multicast off, and forwarding switched on only after that,
# IPv6 joins no groups and so reports none: what rules count is what was sent.
_MACS: Final = {
    "client": "02:00:0a:01:00:02",
    "lan0": "02:00:0a:01:00:01",
    "wan0": "02:00:0a:02:00:01",
    "server": "02:00:0a:02:00:02",
}
_DEVICES: Final = {"client": ("eth0",), "router": ("lan0", "wan0"), "server": ("eth0",)}

_SYSCTLS: Final = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",  # no link-local addresses
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # Every refused packet is answered, also in a flood.
    "ipv4/icmp_ratemask": "0",
    "ipv6/icmp/ratemask": "",
}
_FORWARDING: Final = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}

# A veth whose peer has its own index is taken for a plain device, and the
# kernel then lets up to a second pass before it looks at its link.
_ROUTER_IP: Final = f"""\
link add lan0 index 2 address {_MACS["lan0"]} type veth \
peer name eth0 index 4 address {_MACS["client"]} netns {{client}}
link add wan0 index 3 address {_MACS["wan0"]} type veth \
peer name eth0 index 5 address {_MACS["server"]} netns {{server}}
link set lo up
link set lan0 arp off multicast off
link set wan0 arp off multicast off
addr add {rules.ROUTER4}/24 dev lan0
addr add {rules.ROUTER6}/64 dev lan0 nodad
addr add {rules.UPLINK4}/24 dev wan0
addr add {rules.UPLINK6}/64 dev wan0 nodad
link set lan0 up
link set wan0 up
neigh add {rules.CLIENT4} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {rules.GUEST4} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {rules.CLIENT6} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {rules.GUEST6} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {rules.SERVER4} lladdr {_MACS["server"]} nud permanent dev wan0
neigh add {rules.SERVER6} lladdr {_MACS["server"]} nud permanent dev wan0
"""

_CLIENT_IP: Final = f"""\
link set lo up
link set eth0 arp off multicast off
addr add {rules.CLIENT4}/24 dev eth0
addr add {rules.GUEST4}/24 dev eth0
addr add {rules.GUEST6}/64 dev eth0 nodad
addr add {rules.CLIENT6}/64 dev eth0 nodad
link set eth0 up
neigh add {rules.ROUTER4} lladdr {_MACS["lan0"]} nud permanent dev eth0
neigh add {rules.ROUTER6} lladdr {_MACS["lan0"]} nud permanent dev eth0
route add default via {rules.ROUTER4} dev eth0 src {rules.CLIENT4}
route add default via {rules.ROUTER6} dev eth0 src {rules.CLIENT6}
"""

_SERVER_IP: Final = f"""\
link set lo up
link set eth0 arp off multicast off
addr add {rules.SERVER4}/24 dev eth0
addr add {rules.SERVER6}/64 dev eth0 nodad
link set eth0 up
neigh add {rules.UPLINK4} lladdr {_MACS["wan0"]} nud permanent dev eth0
neigh add {rules.UPLINK6} lladdr {_MACS["wan0"]} nud permanent dev eth0
route add default via {rules.UPLINK4} dev eth0
route add default via {rules.UPLINK6} dev eth0
"""

BACKENDS: Final = ("legacy", "nft")
_V6: Final = re.compile(r"^.*fd00:.*\n", re.MULTILINE)  # lines with addresses as above
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class Network:
    """Three namespaces, PREFIX-client, PREFIX-router and PREFIX-server, for a with statement.

    Several live side by side under different prefixes.  What a killed run left
    under this prefix is removed first.  `missing` lists the iptables matches
    and targets that this kernel lacks; strict makes that an error, else the
    rules that need them are left out (and later rules count lower).  The rules
    are told to the kernel as legacy iptables does, or as iptables-nft: backend.
    `families` are 4 and, where the kernel has it switched on, 6.
    """

    def __init__(
        self, prefix: str = "ipt", *, strict: bool = True, backend: str = "legacy"
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise NetworkError(
                f"bad prefix {prefix!r}: 1 to 32 letters, digits, '_', '.' or '-', please"
            )
        if backend not in BACKENDS:
            raise NetworkError(f"no backend {backend!r}: use 'legacy' or 'nft'")
        self.prefix = prefix
        self.strict = strict
        self.backend = backend
        self.missing: list[str] = []
        self.families = (4, 6) if os.path.exists("/proc/net/if_inet6") else (4,)
        self._lock: int | None = None

    # What it is called

    def ns(self, role: str) -> str:
        """The name of a role's namespace; a namespace's own name stands for itself."""
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
        """role → inode of its namespace, as records and rows have it."""
        return {role: netns_inode(self.ns(role)) for role in ROLES}

    # Life

    def __enter__(self) -> Network:
        self._lock = _lock(self.prefix)
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
        """Remove what a killed run left; the namespaces' names.

        Raises NetworkError if the network is in use.
        """
        lock = _lock(prefix)
        try:
            return _remove(prefix)
        finally:
            _unlock(prefix, lock)

    def _setup(self) -> None:
        if os.geteuid() != 0:
            raise NetworkError("the lab network needs root: run it with sudo, or in the lab VM")
        modules = self._preload()
        run(["ip", "-batch", "-"], text="".join(f"netns add {self.ns(r)}\n" for r in ROLES))
        for role in ROLES:
            call_in(self.ns(role), lambda: _sysctls(_SYSCTLS))
        with contextlib.ExitStack() as stack:
            links = {role: stack.enter_context(link_events(self.ns(role))) for role in ROLES}
            commands = {"router": _ROUTER_IP, "client": _CLIENT_IP, "server": _SERVER_IP}
            for role, batch in commands.items():
                text = batch.format(client=self.client, server=self.server)
                if 6 not in self.families:
                    text = _V6.sub("", text)
                run_in(self.ns(role), ["ip", "-batch", "-"], text=text)
            call_in(self.router, lambda: _sysctls(_FORWARDING))
            if modules is not None:
                modules.wait()
            self._load_rules()
            deadline = time.monotonic() + LINK_WAIT
            for role in ROLES:
                wait_running(links[role], self.ns(role), len(_DEVICES[role]), deadline)

    def _teardown(self) -> None:
        try:
            _remove(self.prefix)
        finally:
            if self._lock is not None:
                _unlock(self.prefix, self._lock)
                self._lock = None

    # Rules and their counters

    def _preload(self) -> subprocess.Popen[bytes] | None:
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
        """Put SYNPROXY (a target that steals packets) before the server's port 8888.

        Moves the router's FORWARD rules by two and raw PREROUTING by one.
        Raises NetworkError where the kernel has no SYNPROXY.
        """
        loose = {"netfilter/nf_conntrack_tcp_loose": "0"}
        call_in(self.router, lambda: _sysctls(loose))
        for family in (4, 6):
            command = restore(self.backend, family)
            load(self.router, command, rules.synproxy(family), keep=True, strict=True)

    def counters(self, ns: str, family: int = 4) -> Counters:
        """(table, chain, rulenum) → (packets, bytes) of a role's rules, from iptables-save -c.

        rulenum counts as `iptables -L --line-numbers` does; 0 is the policy of
        a built-in chain.
        """
        done = run_in(self.ns(ns), [save(self.backend, family), "-c"])
        return read_counters(done.stdout)

    # Doing things inside

    def run(
        self, ns: str, argv: Sequence[str], *, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a role's namespace."""
        return run_in(self.ns(ns), argv, text=text, check=check)

    def call(self, ns: str, function: Callable[[], T]) -> T:
        """Run a function in a role's namespace, in a thread."""
        return call_in(self.ns(ns), function)


_CHAIN: Final = re.compile(r":(\S+) (\S+) \[(\d+):(\d+)\]")
_RULE: Final = re.compile(r"\[(\d+):(\d+)\] -A (\S+)")


def read_counters(text: str) -> Counters:
    """The counters in the output of `iptables-save -c`; see Network.counters()."""
    found: Counters = {}
    table = ""
    numbers: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            numbers = {}
        elif chain := _CHAIN.match(line):
            name, policy, packets, size = chain.groups()
            numbers[name] = 0
            if policy != "-":
                found[table, name, 0] = int(packets), int(size)
        elif rule := _RULE.match(line):
            packets, size, name = rule.groups()
            numbers[name] += 1
            found[table, name, numbers[name]] = int(packets), int(size)
    return found


def _lock_path(prefix: str) -> str:
    return f"{_LOCKS}/lab-{prefix}.lock"


def _lock(prefix: str) -> int:
    """Hold the prefix as long as this process lives, so that a killed run is told from a live."""
    path = _lock_path(prefix)
    while True:
        try:
            os.makedirs(_LOCKS, mode=0o700, exist_ok=True)
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
                "end that, or take another prefix"
            ) from None
        # Between open and flock its last holder may have taken it away.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        os.close(fd)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _unlock(prefix: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_lock_path(prefix))
    os.close(fd)


def _remove(prefix: str) -> list[str]:
    names = [f"{prefix}-{role}" for role in ROLES]
    there = [name for name in names if os.path.lexists(netns_path(name))]
    for name in there:
        # A socket still open somewhere keeps a namespace alive: take its links,
        # so that nothing runs through it any more.
        for device in ("lan0", "wan0", "eth0"):
            with contextlib.suppress(NetworkError):
                call_in(name, lambda device=device: _link_delete(device))  # type: ignore[misc]
    if there:
        run(["ip", "-batch", "-"], text="".join(f"netns del {name}\n" for name in there))
    return there


def _link_delete(device: str) -> None:
    if device in {name for _, name in socket.if_nameindex()}:
        run(["ip", "link", "del", device], check=False)


def _sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        try:
            with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
                file.write(value + "\n")
        except FileNotFoundError:
            continue  # an older kernel has no such knob, nor what it would turn off
        except OSError as error:
            raise NetworkError(f"cannot set net/{name} to {value!r}: {error.strerror}") from None
