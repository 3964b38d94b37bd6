# SPDX-License-Identifier: GPL-2.0-only
"""A namespace in which every kind of call happens all the time, and what changes meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import call_in
from tests.vm.forked import fork
from tests.vm.plain import LOOPBACK, Plain

CPU: Final = "/sys/devices/system/cpu/cpu1/online"
MODULES: Final = "xt_TEE xt_CT ipt_SYNPROXY xt_nat xt_conntrack xt_statistic ipt_REJECT ip6t_REJECT"

# SYNPROXY and REJECT send from inside a call, TEE copies, DNAT rewrites.
RULES: Final = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p tcp --syn --dport 80 -j CT --notrack
-A OUTPUT -p tcp --syn --dport 80 -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -p udp --dport 9 -m statistic --mode nth --every 5 --packet 0 -j TEE --gateway 127.0.0.2
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -p udp --dport 77 -j DNAT --to-destination 127.0.0.1:9
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:A - [0:0]
-A INPUT -p tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
-A INPUT -p udp -j A
-A OUTPUT -p udp --dport 13 -j REJECT
-A OUTPUT -p udp --dport 14 -m statistic --mode nth --every 3 --packet 0 -j REJECT
-A A -p udp --dport 9
-A A -p udp --dport 9
-A A -p udp --dport 9
-A A -p udp --dport 9
-A A -p udp --dport 9
-A A -j RETURN
COMMIT
"""  # noqa: E501
OTHER_RULES: Final = RULES.replace("-A A -j RETURN", "-A A -p icmp -j ACCEPT\n-A A -j RETURN")
RULES6: Final = """\
*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A OUTPUT -p udp --dport 13 -j REJECT
COMMIT
"""


@contextlib.contextmanager
def storm() -> Iterator[Plain]:
    """The namespace, with its rules and its traffic."""
    # Some kernels lack one or the other; the rules then fail to load, which is an error.
    subprocess.run(["modprobe", "-aq", *MODULES.split()], check=False)
    with Plain("ipt-storm") as plain:
        plain.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0")
        plain.load(RULES, 4)
        plain.load(RULES6, 6)
        with meanwhile(lambda: call_in(plain.name, _send)):
            yield plain


def _send() -> None:
    """Datagrams whole and in fragments, of both families, and handshakes; without end."""
    os.nice(10)
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for turn in itertools.count():
        for port in (9, 13, 14, 77, 99):
            with contextlib.suppress(OSError):
                four.sendto(b"y" * (turn * 37 % 3000), (LOOPBACK[4], port))
        with contextlib.suppress(OSError):
            six.sendto(b"z", (LOOPBACK[6], (9, 13)[turn & 1]))
        if turn % 5 == 0:
            with socket.socket() as stream, contextlib.suppress(OSError):
                stream.setblocking(False)
                stream.connect((LOOPBACK[4], (80, 81)[turn // 5 & 1]))


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Runs `work`, which never ends, in a process of its own during the block."""

    def run() -> int:
        work()
        return 0

    pid = fork(run)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def replace_rules(plain: Plain) -> None:
    """Replaces all rules again and again."""
    for turn in itertools.count():
        plain.load(OTHER_RULES if turn % 2 else RULES, 4)


def replace_namespaces() -> None:
    """Namespaces with rules come, send, and are deleted while their packets are under way."""
    for turn in itertools.count():
        with Plain(f"ipt-brief{turn % 3}") as brief:
            brief.load("*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p udp\nCOMMIT\n", 4)
            traffic.udp(brief.name, LOOPBACK[4], 9, 31)


def set_online(on: bool) -> None:
    """Takes CPU 1 off or brings it back."""
    with open(CPU, "w") as file:
        file.write("1" if on else "0")
