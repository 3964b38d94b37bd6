# SPDX-License-Identifier: GPL-2.0-only
"""A namespace whose TRACE lines go to the kernel's log, as in the initial namespace."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ipttrace.lab.network.ns import socket_in
from tests.vm.kernel_log import dmesg
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

_SWITCH: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")
_LOGGERS: Final = {2: "nf_log_ipv4", 10: "nf_log_ipv6"}


@contextlib.contextmanager
def logged(name: str = "ipt-logged") -> Iterator[Plain]:
    """A plain namespace with the kernel's own logger for IPv4 and IPv6."""
    for module in ("nf_log_syslog", *_LOGGERS.values()):
        subprocess.run(["modprobe", "-q", module], check=False)
    before = _SWITCH.read_text()
    _SWITCH.write_text("1\n")
    try:
        with Plain(name) as plain:
            for family, logger in _LOGGERS.items():
                set_logger(plain, family, logger)
            yield plain
    finally:
        _SWITCH.write_text(before)


def set_logger(plain: Plain, family: int, logger: str) -> None:
    """Binds the logger to the NFPROTO_* `family` in the namespace."""
    plain.run("sh", "-c", f"echo {logger} >/proc/sys/net/netfilter/nf_log/{family}")


class Log:
    """The TRACE lines in the kernel's log since it was made."""

    def __init__(self) -> None:
        self._from = len(dmesg())

    def lines(self) -> list[str]:
        """All of them."""
        return [line for line in dmesg()[self._from :].splitlines() if "TRACE: " in line]

    def by_port(self) -> Counter[int]:
        """UDP destination port → lines."""
        ports = (re.search(r" DPT=(\d+)", line) for line in self.lines())
        return Counter(int(found[1]) for found in ports if found)


@contextlib.contextmanager
def delivering(plain: Plain, *ports: int) -> Iterator[Callable[..., None]]:
    """Sockets for these ports; yields what `deliver` does, which then takes no time to begin.

    `at_once`: so many are sent before the first is received, each in memory of its own.
    """
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as stack:
        sender = stack.enter_context(socket_in(plain.name, *kind))
        listeners = {port: stack.enter_context(socket_in(plain.name, *kind)) for port in ports}
        for port, listener in listeners.items():
            listener.bind((LOOPBACK[4], port))
            listener.settimeout(PATIENCE)

        def send(ports: list[int], payload: bytes = b"ipttrace", at_once: int = 1) -> None:
            for first in range(0, len(ports), at_once):
                for port in ports[first : first + at_once]:
                    sender.sendto(payload, (LOOPBACK[4], port))
                for port in ports[first : first + at_once]:
                    assert listeners[port].recv(1 << 16) == payload

        yield send


def deliver(plain: Plain, ports: list[int], *, payload: bytes = b"ipttrace") -> None:
    """Sends a datagram to each of the ports in turn, and receives it before the next one.

    All from one socket, so that the kernel uses the memory of a packet for the next.
    """
    with delivering(plain, *set(ports)) as send:
        send(ports, payload)
