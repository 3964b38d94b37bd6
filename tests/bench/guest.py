# SPDX-License-Identifier: GPL-2.0-only
"""What tracing costs, measured inside the lab VM: UDP packets/s relative to no tracing.

A flood over loopback in a namespace of its own, through two legacy rules (``--nft``: through
two chains of nftables, of two rules each).  Each
variant alternates with untraced runs, several times; it is compared with the mean of
the untraced runs before and after it, and the median counts.  -j TRACE comes last: it
leaves a raw table behind that every packet then traverses.  Prints one JSON object.
``python -m tests.bench.guest BARE.ko [--counted] [--nft]``.

``--counted`` is for a guest in which a nanosecond is an instruction: it measures the
cost of a packet, with the agent stopped, and of a record in the agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ipttrace.lab.network.ns import call_in, run_in, socket_in
from ipttrace.lab.traffic import flood
from ipttrace.stream.frames import MAGIC
from tests.bench import delivered, guarded

NETLINK_NETFILTER = 12
NS = "ipt-bench"
PORT = 9
SECONDS = 1.0
WARM_UP = 0.5  # the emulator retranslates the code after a change of probes
ROUNDS = 8
COUNTED = 2_000  # packets, whose records fit in the buffers
RULES = """*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -j DROP
-A INPUT -p udp -m udp --dport 9 -j ACCEPT
COMMIT
"""
NFT_RULES = """table inet bench {
    chain in {
        type filter hook input priority 0; policy accept;
        meta l4proto tcp drop
        udp dport 9 accept
    }
    chain out {
        type filter hook output priority 0; policy accept;
        meta l4proto tcp drop
        udp dport 9 accept
    }
}
"""
NFT_TRACE = """table inet trace {
    chain out {
        type filter hook output priority -400; policy accept;
        meta nftrace set 1
    }
}
"""
# A chain at each hook of a packet, as a trace with a filter has them.
NFT_FLIPS = """table inet flips {{
    chain out {{
        type filter hook output priority -400; policy accept;
        udp dport 1 {0}
    }}
    chain pre {{
        type filter hook prerouting priority -400; policy accept;
        udp dport 1 {0}
    }}
}}
"""
TRACE = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -j TRACE
-A OUTPUT -j TRACE
COMMIT
"""

Figures = dict[str, float]


@dataclass
class Variant:
    """What runs while packets are sent: its figures at the end, and the agent's pid."""

    figures: Figures = field(default_factory=dict)
    pid: int | None = None


def _sh(*argv: str, text: str = "") -> None:
    subprocess.run(argv, input=text, text=True, check=True, capture_output=True)


@contextlib.contextmanager
def untraced() -> Iterator[Variant]:
    yield Variant()


@contextlib.contextmanager
def bare(module: str) -> Iterator[Variant]:
    _sh("insmod", module)
    try:
        yield Variant()
    finally:
        _sh("rmmod", "bare")


@contextlib.contextmanager
def agent(expr: str, engine: str = "kernel", drops: str = "--no-drops") -> Iterator[Variant]:
    """Runs the agent; reads its stream from a pipe and keeps only its end.

    `drops`: an option, "" for none: drops are recorded.
    """
    ready = Path("/tmp/bench.ready")
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "ipttrace", "agent", "--engine", engine]
    argv += ["--control", "--unchecked", *drops.split()]
    if engine != "kernel":
        argv += ["--netns", NS]
    argv += ["--ready-file", str(ready)]
    child = subprocess.Popen([*argv, "--", expr], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    reader = subprocess.Popen(["tail", "-c", "4096"], stdin=child.stdout, stdout=subprocess.PIPE)
    while not ready.exists():
        if child.poll() is not None:
            raise SystemExit("the agent ended before it was armed")
        time.sleep(0.05)
    variant = Variant(pid=child.pid)
    try:
        yield variant
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        last, _ = reader.communicate()
    # The END frame: a header of 16 bytes, then the books.
    books = json.loads(last[last.rindex(MAGIC) + 16 :])
    due = sum(books["due"])
    variant.figures["delivered"] = sum(books["delivered"]) / due if due else 1.0


@contextlib.contextmanager
def nft_monitor() -> Iterator[Variant]:
    """Traces every packet for `nft monitor trace`, whose lines are discarded."""
    run_in(NS, ["nft", "-f", "-"], text=NFT_TRACE)
    argv = ["ip", "netns", "exec", NS, "nft", "monitor", "trace"]
    monitor = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Variant()
    finally:
        monitor.kill()
        monitor.wait()
        run_in(NS, ["nft", "delete", "table", "inet", "trace"])


@contextlib.contextmanager
def nft_flips(statement: str) -> Iterator[Variant]:
    """Two more chains, whose rules match no packet; `statement`: what they would do."""
    run_in(NS, ["nft", "-f", "-"], text=NFT_FLIPS.format(statement))
    try:
        yield Variant()
    finally:
        run_in(NS, ["nft", "delete", "table", "inet", "flips"])


@contextlib.contextmanager
def trace_target() -> Iterator[Variant]:
    """Runs -j TRACE with a reader of nfnetlink_log that discards what it reads."""
    run_in(NS, ["iptables-legacy-restore", "--noflush"], text=TRACE)
    _sh("modprobe", "nfnetlink_log")

    def open_log() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        sock.bind((0, 0))
        # NFULNL_MSG_CONFIG, group 0: PF_BIND for IPv4, BIND, COPY_PACKET of 128 bytes
        for family, attribute in (
            (socket.AF_INET, b"\x08\x00\x01\x00\x03\x00\x00\x00"),
            (0, b"\x08\x00\x01\x00\x01\x00\x00\x00"),
            (0, b"\x0a\x00\x02\x00\x00\x00\x00\x80\x02\x00\x00\x00"),
        ):
            body = bytes([family, 0, 0, 0]) + attribute
            head = (16 + len(body)).to_bytes(4, "little") + b"\x01\x04\x05\x00" + bytes(8)
            sock.send(head + body)
            answer = sock.recv(4096)
            assert answer[16:20] == bytes(4), answer[16:20]
        return sock

    sock = call_in(NS, open_log)
    stop = threading.Event()
    received = [0]

    def drain() -> None:
        buffer = bytearray(1 << 20)
        while not stop.is_set():
            if select.select([sock], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    received[0] += sock.recv_into(buffer)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        yield Variant()
    finally:
        stop.set()
        reader.join()
        sock.close()
        run_in(NS, ["iptables-legacy", "-t", "raw", "-F"])
        assert received[0], "no log message was received: nothing was measured"


def rate_of_sends(seconds: float) -> float:
    """Returns the packets/s of an ordinary sender, one system call each."""
    with socket_in(NS, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORT))
        send, payload, now = sock.send, bytes(18), time.perf_counter
        sent, began = 0, now()
        while now() - began < seconds:
            for _ in range(50):
                send(payload)
            sent += 50
        return sent / (now() - began)


def rate_of_flood(seconds: float) -> float:
    """Returns the packets/s of sendmmsg(2): mostly the packets' path through the stack."""
    began = time.perf_counter()
    sent = flood(NS, "127.0.0.1", PORT, duration=seconds).sent
    return sent / (time.perf_counter() - began)


SENDERS = {"sends": rate_of_sends, "flood": rate_of_flood}


def _network(*, nft: bool = False) -> socket.socket:
    """Sets up the namespace and its rules; returns the socket that receives the packets."""
    _sh("ip", "netns", "add", NS)
    run_in(NS, ["ip", "link", "set", "lo", "up"])
    if nft:
        run_in(NS, ["nft", "-f", "-"], text=NFT_RULES)
    else:
        _sh("modprobe", "iptable_filter")
        _sh("modprobe", "ip6table_filter")
        run_in(NS, ["iptables-legacy-restore"], text=RULES)
    sink = call_in(NS, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sink.bind(("127.0.0.1", PORT))
    return sink


def _variants(
    module: str,
) -> dict[str, Callable[[], contextlib.AbstractContextManager[Variant]]]:
    return {
        "untraced": untraced,
        "bare kretprobe": lambda: bare(module),
        "filter that matches nothing": lambda: agent("udp port 1"),
        "all matched and read": lambda: agent(""),
        "bpf: filter that matches nothing": lambda: agent("udp port 1", "bpf"),
        "bpf: all matched and read": lambda: agent("", "bpf"),
        # The sink never reads: packets are dropped once its buffer is full.
        "bpf, drops: filter that matches nothing": lambda: agent("udp port 1", "bpf", ""),
        "bpf, drops: all matched and read": lambda: agent("", "bpf", ""),
        "bpf, stations: filter that matches nothing": lambda: agent(
            "udp port 1", "bpf", "--stations"
        ),
        "bpf, stations: all matched and read": lambda: agent("", "bpf", "--stations"),
        "-j TRACE with a reader": trace_target,
    }


def _nft_variants() -> dict[str, Callable[[], contextlib.AbstractContextManager[Variant]]]:
    return {
        "nft, bpf: filter that matches nothing": lambda: agent("udp port 1", "bpf"),
        "nft, bpf: all matched and read": lambda: agent("", "bpf"),
        "nft, netlink: all matched and read": lambda: agent("", "netlink"),
        "nft monitor trace": nft_monitor,
    }


def _nft_floors() -> dict[str, Callable[[], contextlib.AbstractContextManager[Variant]]]:
    """What the kernel itself does for a filter that matches nothing, without any trace."""
    return {
        "nft, two more chains": lambda: nft_flips("accept"),
        "nft, two more chains with meta nftrace": lambda: nft_flips("meta nftrace set 1"),
    }


def _cpu(pid: int) -> int:
    """Returns the CPU time of the process in ns."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _idle(pid: int) -> int:
    """Returns the CPU time in ns that the process uses in an idle second."""
    before = _cpu(pid)
    time.sleep(1)
    return _cpu(pid) - before


def _delivered_variants() -> dict[str, Callable[[], contextlib.AbstractContextManager[Variant]]]:
    """Of packets that all reach their receiver, as most packets of a host do."""
    return {
        "delivered, untraced": untraced,
        "delivered, drops: filter that matches nothing": lambda: agent("udp port 1", "kernel", ""),
        "delivered, bpf, drops: filter that matches nothing": lambda: agent(
            "udp port 1", "bpf", ""
        ),
    }


def counted(module: str, *, nft: bool = False) -> None:
    """Prints instructions per packet, and the agent's instructions per record."""
    sink = _network(nft=nft)
    costs: Figures = {}
    extra: Figures = {}
    nft_variants = {"nft, untraced": untraced, **_nft_floors(), **_nft_variants()}
    variants = nft_variants if nft else _variants(module)
    for name, variant in list(variants.items())[:-1]:
        with variant() as running:
            flood(NS, "127.0.0.1", PORT, count=COUNTED)
            if running.pid is not None:
                time.sleep(1)
                idle = _idle(running.pid)
                os.kill(running.pid, signal.SIGSTOP)
            best = float("inf")
            for _ in range(2):
                began = time.perf_counter_ns()
                flood(NS, "127.0.0.1", PORT, count=COUNTED)
                best = min(best, time.perf_counter_ns() - began)
            costs[name] = best / COUNTED
            if running.pid is not None:
                before = _cpu(running.pid)
                os.kill(running.pid, signal.SIGCONT)
                time.sleep(1)
                # Two calls a packet, each with an entry, a rule and an exit record.
                spent = _cpu(running.pid) - before - idle
                if name.endswith("all matched and read"):
                    extra[f"{name}: agent, a record"] = spent / (2 * COUNTED * 6)
        extra |= {f"{name}: {key}": value for key, value in running.figures.items()}
    if not nft:
        costs |= delivered.costs(NS, sink, _delivered_variants())
        costs |= guarded.costs()
    sink.close()
    print(json.dumps({"kernel": os.uname().release, "costs": costs, "extra": extra}))


def _rates(variant: Callable[[], contextlib.AbstractContextManager[Variant]]) -> Figures:
    """Returns the packets/s of each sender, and the variant's own figures."""
    with variant() as running:
        rates = {}
        for kind, sender in SENDERS.items():
            sender(WARM_UP)
            rates[kind] = sender(SECONDS)
    return rates | running.figures


def main(module: str, *, nft: bool = False) -> None:
    """Prints each variant's rates relative to the untraced runs before and after it."""
    sink = _network(nft=nft)
    variants = _nft_variants() if nft else _variants(module)
    variants.pop("untraced", None)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    base: dict[str, list[float]] = {kind: [] for kind in SENDERS}
    for name, variant in variants.items():
        before = _rates(untraced)
        for _ in range(ROUNDS):
            rates = _rates(variant)
            after = _rates(untraced)
            for key, value in rates.items():
                if key in SENDERS:
                    base[key].append(after[key])
                    value *= 2 / (before[key] + after[key])
                found[name].setdefault(key, []).append(value)
            before = after
    sink.close()
    ratios = {
        name: {key: statistics.median(values) for key, values in keys.items()}
        for name, keys in found.items()
    }
    untraced_rates = {kind: statistics.median(values) for kind, values in base.items()}
    print(json.dumps({"rates": untraced_rates, "ratios": ratios}))


if __name__ == "__main__":
    if "--counted" in sys.argv[2:]:
        counted(sys.argv[1], nft="--nft" in sys.argv[2:])
    else:
        main(sys.argv[1], nft="--nft" in sys.argv[2:])
