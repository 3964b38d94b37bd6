# SPDX-License-Identifier: GPL-2.0-only
"""The netlink engine compared with nft and xtables-monitor: packets seen and CPU time.

One UDP flow through two chains in a network namespace of its own, at 10,000
packets/s and unpaced; the rate up to which nothing is lost; the agent's memory in a longer
flood; and the time until the first row with a text, with 10,000 rules of iptables-nft.
Output goes to /dev/null; it is counted only for programs that have no counters of their
own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.first_row import first_row
from tests.paths import PROJECT

COUNT = 20_000
RATE = 10_000
# For the agent's memory.
FLOOD = 100_000
FLOOD_RATE = 20_000
# For the rate without loss.
LOSS_SECONDS = 3.0
LOSS_TIME = 45.0  # s after which no further rate is tried
PORT = 5353
DEMO_RUNS = 5
MANY = 10_000
TEXT_RUNS = 3

# Each datagram passes both chains: one in OUTPUT, one in INPUT.
RULES = f"""
table ip bench {{
    chain out {{
        type filter hook output priority 0; policy accept;
        udp dport {PORT} counter accept
    }}
    chain in {{
        type filter hook input priority 0; policy accept;
        udp dport {PORT} counter drop
    }}
}}
"""
TRACE = f"""
table ip tracing {{
    chain out {{
        type filter hook output priority -350; policy accept;
        udp dport {PORT} meta nftrace set 1
    }}
    chain in {{
        type filter hook prerouting priority -350; policy accept;
        udp dport {PORT} meta nftrace set 1
    }}
}}
"""
# nft reports four chains for each datagram: the two above, and the two that flip.
_PACKETS = re.compile(rb"^trace id \w+ ip bench in |^ ?TRACE: .*\bbench:in:", re.MULTILINE)

Figures = dict[str, dict[str, Any]]


def send(rate: int, count: int = COUNT) -> None:
    """Sends `count` datagrams over loopback, at `rate` packets/s; 0: unpaced."""
    begun = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            # The drop in INPUT is not reported to the sender.
            sock.sendto(b"bench", ("127.0.0.1", PORT))
            if rate and number % 20 == 19:
                pause = begun + number / rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)


def cpu_at_end(process: subprocess.Popen[bytes], stop: int | None) -> float:
    """Waits for the process, after signal `stop` if given; returns CPU s including children."""
    if stop is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, stop)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime


def start_ipttrace(folder: Path) -> subprocess.Popen[bytes]:
    """Starts `ipttrace print`, which is armed when this returns."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ipttrace", "print", "--engine", "netlink"]
    command += ["--ready-file", str(ready), f"udp dst port {PORT}"]
    with open(os.devnull, "wb") as null:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=null, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().decode())
        time.sleep(0.01)
    return process


def measure_memory(folder: Path) -> float:
    """The agent's largest resident memory in a flood, MB."""
    process = start_ipttrace(folder)
    send(FLOOD_RATE, FLOOD)
    _wait_until_idle(process.pid)
    peak = max(map(_peak, _children(process.pid)), default=0.0)
    cpu_at_end(process, signal.SIGINT)
    return peak


def _peak(pid: int) -> float:
    """The largest resident memory that a process has had, MB; 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1000 if found else 0.0
    return 0.0


def without_loss(folder: Path) -> tuple[int, int | None]:
    """Returns the highest rate found without loss and the lowest with it, packets/s.

    Without loss: lost=0 and missed=0 after some seconds at this rate, as reached by the
    sender; 0 if there is none.  None if even its fastest loses nothing.
    """
    deadline = time.monotonic() + LOSS_TIME
    good, bad, rate = 0, None, RATE
    while time.monotonic() < deadline and (bad is None or bad - good > good // 10):
        reached, lossless = _sustained(rate, folder)
        fastest = lossless and reached < 1.2 * good  # the sender cannot reach more
        if lossless:
            good = max(good, reached)
        else:
            bad = reached if bad is None else min(bad, reached)
        if bad is None and fastest:
            break
        rate = 2 * rate if bad is None else (good + bad) // 2
    return good, bad


def _sustained(rate: int, folder: Path) -> tuple[int, bool]:
    """Sends at `rate` for some seconds; returns the rate reached, and whether all was seen."""
    process = start_ipttrace(folder)
    assert process.stderr is not None
    count = int(rate * LOSS_SECONDS)
    begun = time.monotonic()
    send(rate, count)
    reached = int(count / (time.monotonic() - begun))
    _wait_until_idle(process.pid)
    cpu_at_end(process, signal.SIGINT)
    summary = process.stderr.read().decode()
    seen = re.search(r"rows=(\d+) .*lost=0 missed=0 ", summary)
    return reached, seen is not None and int(seen[1]) == 2 * count


def measure_ipttrace(rate: int, folder: Path) -> tuple[int, int, float]:
    """Runs `ipttrace print`; returns packets seen, messages reported lost, CPU seconds."""
    process = start_ipttrace(folder)
    assert process.stderr is not None
    before = _cpu(process.pid)
    send(rate)
    _wait_until_idle(process.pid)
    spent = cpu_at_end(process, signal.SIGINT) - before
    stderr = process.stderr.read().decode()
    summary = re.search(r"rows=(\d+) .*lost=(\d+)", stderr)
    if summary is None:
        raise RuntimeError(stderr)
    return int(summary[1]) // 2, int(summary[2]), spent


def first_text() -> float:
    """Returns the seconds from arming to the first row with a text, with MANY rules loaded."""
    lines = "".join(f"-A INPUT -p udp -m udp --dport {1 + n} -j ACCEPT\n" for n in range(MANY))
    rules = f"*filter\n{lines}COMMIT\n"
    subprocess.run(["iptables-nft-restore"], input=rules.encode(), check=True)
    command = [sys.executable, "-m", "ipttrace", "print", "--engine", "netlink"]
    command += ["--format", "jsonl", f"udp dst port {MANY // 2}"]
    try:
        with (
            subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as process,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            assert process.stdout is not None
            armed, found, rest = 0.0, False, b""
            while not found and process.poll() is None:
                sock.sendto(b"bench", ("127.0.0.1", MANY // 2))
                if not armed and b"ipttrace-" in _tables():
                    armed = time.monotonic()
                if select.select([process.stdout], [], [], 0.01)[0]:
                    rest += os.read(process.stdout.fileno(), 1 << 16)
                    *rows, rest = rest.split(b"\n")
                    found = any(json.loads(row)["rule"] for row in rows)
            took = time.monotonic() - armed
            process.send_signal(signal.SIGINT)
            process.stdout.read()
    finally:
        nft("delete table ip filter")
    return took


def _tables() -> bytes:
    return subprocess.run(["nft", "list", "tables"], stdout=subprocess.PIPE, check=True).stdout


def _cpu(pid: int) -> float:
    """Returns the CPU seconds so far of a process and its children."""
    total = 0
    for one in [pid, *_children(pid)]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for word in words for child in (int(word), *_children(int(word)))]
    return []


def _wait_until_idle(pid: int) -> None:
    """Waits until the process has finished its work, by its CPU time."""
    while True:
        before = _cpu(pid)
        time.sleep(0.5)
        if _cpu(pid) - before <= 0.03:
            return


def monitor(argv: list[str], rate: int, tracing: str) -> tuple[int, float]:
    """Runs a monitor twice; returns packets shown in a file, and CPU s with /dev/null."""
    seen = _monitored(argv, rate, tracing, keep=True)[0]
    return seen, _monitored(argv, rate, tracing, keep=False)[1]


def _monitored(argv: list[str], rate: int, tracing: str, keep: bool) -> tuple[int, float]:
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            argv, stdout=out if keep else subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_until_listening(process.pid)
        nft(tracing)
        send(rate)
        _wait_until_idle(process.pid)
        nft("delete table ip tracing")
        spent = cpu_at_end(process, signal.SIGKILL)
        out.seek(0)
        return len(_PACKETS.findall(out.read())), spent


def _wait_until_listening(pid: int) -> None:
    """Waits until the process has a netfilter socket in a multicast group."""
    while True:
        sockets = set()
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(fd))
        for line in Path("/proc/net/netlink").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == "12" and int(fields[3], 16) and f"socket:[{fields[-1]}]" in sockets:
                return
        time.sleep(0.01)


def run() -> Figures:
    """Returns all figures, measured by a child in a network namespace of its own."""
    reader, writer = os.pipe()
    code = "import sys, tests.bench.bench_netlink as it; it.inside(int(sys.argv[1]))"
    process = subprocess.Popen(
        ["unshare", "-n", sys.executable, "-c", code, str(writer)],
        cwd=PROJECT,
        pass_fds=[writer],
    )
    os.close(writer)
    data = b""
    while select.select([reader], [], [])[0] and (portion := os.read(reader, 1 << 16)):
        data += portion
    os.close(reader)
    if process.wait():
        raise SystemExit(process.returncode)
    figures: Figures = json.loads(data)
    figures["netlink_demo_first_row"] = {
        "value": round(statistics.median(first_row("demo") for _ in range(DEMO_RUNS)), 2),
        "unit": "s",
        "goal": "<= 2",
    }
    return figures


def inside(out: int) -> None:
    """Measures, and writes the figures to descriptor `out`."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    nft(RULES)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        for pace, rate in (("paced", RATE), ("burst", 0)):
            seen, lost, spent = measure_ipttrace(rate, Path(name))
            figures |= _figures("ours", pace, seen, spent, 1.0)
            figures[f"netlink_ours_{pace}_lost"] = {
                "value": lost,
                "unit": "messages",
                "goal": 0 if rate else "",
            }
            for tool, argv in (
                ("nft", ["nft", "monitor", "trace"]),
                ("xtables_monitor", ["xtables-monitor", "--trace"]),
            ):
                if shutil.which(argv[0]) is not None:
                    figures |= _figures(tool, pace, *monitor(argv, rate, TRACE))
        good, bad = without_loss(Path(name))
        figures["netlink_packets_without_loss"] = {
            "value": good,
            "unit": "packets/s",
            "goal": f">= {RATE}",
        }
        figures["netlink_rows_without_loss"] = {"value": 2 * good, "unit": "rows/s", "goal": ""}
        figures["netlink_packets_with_loss"] = {
            "value": "none" if bad is None else bad,
            "unit": "packets/s",
            "goal": "",
        }
        figures["netlink_agent_peak_memory"] = {
            "value": round(measure_memory(Path(name))),
            "unit": "MB",
            "goal": "<= 400",
        }
        if shutil.which("iptables-nft-restore") is not None:
            figures["netlink_first_text"] = {
                "value": round(statistics.median(first_text() for _ in range(TEXT_RUNS)), 2),
                "unit": "s",
                "goal": "<= 1.5",
            }
        mine = figures["netlink_ours_paced_cpu"]["value"]
        nfts = figures["netlink_nft_paced_cpu"]["value"]
        figures["netlink_cpu_against_nft"] = {
            "value": round(mine / nfts, 2),
            "unit": "of its CPU",
            "goal": "< 1",
        }
    os.write(out, json.dumps(figures).encode())


def _figures(tool: str, pace: str, seen: int, spent: float, goal: float | None = None) -> Figures:
    return {
        f"netlink_{tool}_{pace}_seen": {
            "value": round(seen / COUNT, 4),
            "unit": "of packets",
            "goal": "" if goal is None else goal,
        },
        f"netlink_{tool}_{pace}_cpu": {
            "value": round(spent / max(seen, 1) * 1e6, 1),
            "unit": "µs a packet",
            "goal": "",
        },
    }
