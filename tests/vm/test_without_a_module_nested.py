# SPDX-License-Identifier: GPL-2.0-only
"""A packet that REJECT sends from inside a run: nftables inside legacy tables, and around them.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.stream.record import F_SOFTIRQ
from ipttrace.trace.row import Row
from tests.vm.conftest import SHARED
from tests.vm.live import Live, live
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

COUNT = 23
# By whom, and where, a packet to the port is rejected.  Packets on lo leave in the sender's
# context, and come in in a softirq.
PORTS = {
    101: ("native", "OUTPUT"),
    103: ("native", "INPUT"),
    105: ("filter", "OUTPUT"),
    107: ("filter", "INPUT"),
}
LEGACY = """*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A OUTPUT -p udp --dport 105 -j REJECT
-A INPUT -p udp --dport 107 -j REJECT
COMMIT
"""
# Answers walk through thousands of rules that they do not match: their runs take long.
SLOW = "\n".join(f"        udp dport {port}" for port in range(10000, 13000))
TIMES = 20
NATIVE = f"""table inet native {{
    chain slow {{
{SLOW}
    }}
    chain in {{
        type filter hook input priority 10; policy accept;
        udp dport 103 counter reject
    }}
    chain out {{
        type filter hook output priority 10; policy accept;
        udp dport 101 counter reject
        meta l4proto {{ icmp, ipv6-icmp }} counter
        {TIMES * "meta l4proto { icmp, ipv6-icmp } jump slow; "}
    }}
}}
"""


@contextlib.contextmanager
def ruled() -> Iterator[Plain]:
    """A namespace with both rulesets."""
    with Plain() as plain:
        plain.run("sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0")
        for family in (4, 6):
            plain.load(LEGACY, family)
        run_in(plain.name, ["nft", "-f", "-"], text=NATIVE)
        yield plain


def send(plain: Plain) -> None:
    """Sends COUNT packets to each port, of both families, and waits for each answer."""
    for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        for port in PORTS:
            with socket_in(plain.name, kind, socket.SOCK_DGRAM) as sender:
                sender.settimeout(PATIENCE)
                sender.connect((LOOPBACK[family], port))
                for _ in range(COUNT):
                    with contextlib.suppress(PermissionError):  # dropped in OUTPUT
                        sender.send(b"x" * 29)
                    with contextlib.suppress(ConnectionRefusedError):
                        sender.recv(64)


def answers(plain: Plain) -> int:
    """How many packets REJECT has sent, as nft counted them in OUTPUT."""
    listed = json.loads(plain.run("nft", "-j", "list", "chain", "inet", "native", "out").stdout)
    rules = [item["rule"]["expr"] for item in listed["nftables"] if "rule" in item]
    counters = [part["counter"]["packets"] for part in rules[1] if "counter" in part]
    return int(counters[0])


def softly(one: Live) -> dict[int, bool]:
    """call → whether it ran in a softirq."""
    store = one.trace.store
    flags = store.column("flags") & F_SOFTIRQ
    return dict(zip(store.column("call").tolist(), (flags != 0).tolist(), strict=True))


def test_what_reject_sends_is_inside_the_run_that_rejects(tmp_path: Path) -> None:
    assert not any("kprobes" in text for _, text in rejected(tmp_path).trace.notes)


def rejected(folder: Path) -> Live:
    """A trace in which packets are rejected; checks all of its rows."""
    # GIVEN rules of both kinds that reject, where packets leave and where they come in
    with ruled() as plain:
        one = live(plain, folder / "ready", engine="bpf")
        # WHEN packets are rejected
        send(plain)
        rows = one.finish()
        sent = answers(plain)
    assert sent == 2 * len(PORTS) * COUNT
    assert one.trace.missed == one.trace.lost == 0
    calls = {row.call: row for row in rows}
    inside: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.parent is not None:
            inside[row.parent].append(row)
    # THEN each answer's three runs in OUTPUT are inside the run that rejected, and no others
    by = Counter((calls[call].family, calls[call].table, calls[call].hook) for call in inside)
    assert by == {(family, *where): COUNT for family in (4, 6) for where in PORTS.values()}
    context = softly(one)
    own: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    slow: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for call, made in inside.items():
        around = calls[call]
        assert PORTS[around.dport or 0] == (around.table, around.hook), around
        assert around.verdict == "DROP"
        ways = [(row.table, row.hook) for row in sorted(made, key=lambda row: row.time)]
        assert ways == [("raw", "OUTPUT"), ("filter", "OUTPUT"), ("native", "OUTPUT")]
        assert {row.proto for row in made} == {"ICMP" if around.family == 4 else "ICMPv6"}
        # AND in its context, that of the sender or a softirq
        expected = around.hook == "INPUT"
        assert {context[row.call] for row in (around, *made)} == {expected}
        # AND they are another packet's, which then comes in outside of any run
        (journey,) = {row.journey for row in made}
        rest = [row for row in rows if row.journey == journey and row not in made]
        assert rest
        assert {row.parent for row in rest} == {None}
        assert {row.hook for row in rest} <= {"PREROUTING", "INPUT"}
        assert journey != around.journey
        where = around.family, around.table, around.hook
        own[where].append(around.cost_ns or 0)
        slow[where].append(max(row.cost_ns or 0 for row in made))
    # AND the time that these took is theirs, not its own
    for where, costs in own.items():
        assert 0 < min(costs) < min(slow[where]), (where, costs, slow[where])
    assert len({row.journey for row in rows}) == 2 * sent
    return one
