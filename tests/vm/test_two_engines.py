# SPDX-License-Identifier: GPL-2.0-only
"""Both engines at once, and the netlink engine alone, yield one timeline.

The last file by name: it loads nf_tables, and with that every later command would trace
nftables too, which takes time.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import socket_in
from ipttrace.stream.decoder import read_file
from ipttrace.stream.frames import Kind
from ipttrace.trace.row import Row
from tests.program import NO_BTF, ipttrace
from tests.vm.conftest import SHARED, captured
from tests.vm.logged import Log
from tests.vm.plain import LOOPBACK, Plain, raw_and_filter
from tests.vm.texts import in_short, live

pytestmark = SHARED

COUNT = 23

# What each echo request and reply on lo passes: legacy raw and filter, the filter table of
# iptables-nft, and a native table with a map, a set and a jump.
LEGACY = """*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
-A PREROUTING -p {icmp} -j MARK --set-mark 7
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:MINE -
-A INPUT -j MINE
-A MINE -p {icmp} -j ACCEPT
COMMIT
"""
IPTABLES_NFT = """*filter
:INPUT DROP
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -p tcp -j DROP
-A INPUT -p {icmp} -j ACCEPT
COMMIT
"""
NATIVE = """table inet native {{
    set loop {{
        type {type}
        elements = {{ {loop} }}
    }}
    chain judge {{
        {ip} saddr @loop return
        drop
    }}
    chain out {{
        type filter hook output priority 10; policy accept;
        {ip} daddr {loop} jump judge
        meta l4proto vmap {{ {icmp} : accept, tcp : drop }}
    }}
}}
"""
LOGGERS = ("net.netfilter.nf_log.2", "net.netfilter.nf_log.10")
LOUD = " type filter hook output priority 10\n counter"
WORDS = {
    4: {"icmp": "icmp", "type": "ipv4_addr", "loop": "127.0.0.1", "ip": "ip"},
    6: {"icmp": "ipv6-icmp", "type": "ipv6_addr", "loop": "::1", "ip": "ip6"},
}
TOOLS = {4: "iptables", 6: "ip6tables"}

# Hook, table, deciding chain and rule number, match, verdict, path.
Passed = tuple[str, str, str | None, int | None, str | None, str | None, str]
OUT: list[Passed] = [
    ("OUTPUT", "raw", "OUTPUT", 1, "policy", "ACCEPT", "OUTPUT:1"),
    ("OUTPUT", "filter", "OUTPUT", 1, "policy", "ACCEPT", "OUTPUT:1"),
    ("OUTPUT", "filter", "OUTPUT", 1, "policy", "ACCEPT", "OUTPUT:1"),
    ("OUTPUT", "native", "out", 2, "rule", "ACCEPT", "out:1>judge:1>out:2"),
]
IN: list[Passed] = [
    ("PREROUTING", "raw", "PREROUTING", 2, "policy", "ACCEPT", "PREROUTING:1>PREROUTING:2"),
    ("INPUT", "filter", "MINE", 1, "rule", "ACCEPT", "INPUT:1>MINE:1"),
    ("INPUT", "filter", "INPUT", 2, "rule", "ACCEPT", "INPUT:2"),
]


@pytest.fixture(params=(4, 6))
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def plain(family: int) -> Iterator[Plain]:
    with Plain() as made:
        made.load(LEGACY.format(**WORDS[family]), family)
        _nft(made, [f"{TOOLS[family]}-nft-restore"], IPTABLES_NFT.format(**WORDS[family]))
        _nft(made, ["nft", "-f", "-"], NATIVE.format(**WORDS[family]))
        yield made


def _nft(plain: Plain, argv: list[str], text: str) -> None:
    command = ["ip", "netns", "exec", plain.name, *argv]
    subprocess.run(command, input=text.encode(), check=True, capture_output=True)


def _passed(row: Row) -> Passed:
    path = ">".join(f"{step.chain}:{step.rulenum}" for step in row.path)
    return (row.hook, row.table, row.chain, row.rulenum, row.match, row.verdict, path)


def _counted(plain: Plain, family: int) -> Counter[tuple[bool, str, str, int]]:
    """Packets counted by each rule of iptables; keys: is it nft, table, chain, number."""
    counted: Counter[tuple[bool, str, str, int]] = Counter()
    for kind in ("legacy", "nft"):
        numbers: Counter[tuple[str, str]] = Counter()
        table = ""
        for line in plain.run(f"{TOOLS[family]}-{kind}-save", "-c").stdout.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("["):
                count = line.split()[0]
                chain = line.split(" -A ")[1].split()[0]
                numbers[table, chain] += 1
                packets = int(count[1:].split(":")[0])
                counted[kind == "nft", table, chain, numbers[table, chain]] = packets
    return +counted


def test_23_pings_through_all_kinds_of_rules_are_one_timeline_with_two_engines(
    plain: Plain, family: int, pair: str
) -> None:
    pings_are_one_timeline(plain, family, "auto", pair)


def test_23_pings_through_all_kinds_of_rules_are_one_timeline_over_netlink(
    plain: Plain, family: int
) -> None:
    pings_are_one_timeline(plain, family, "netlink", "netlink")


def pings_are_one_timeline(plain: Plain, family: int, engine: str, named: str) -> None:
    """Checks the rows of 23 pings; `named`: the engine as the stream names it."""
    # GIVEN a namespace with rules of legacy, of iptables-nft and of nftables
    before = plain.run("sysctl", "-n", *LOGGERS).stdout
    with captured(netns=plain.name, engine=engine) as capture:
        # WHEN 23 pings go through them
        assert traffic.ping(plain.name, LOOPBACK[family], COUNT).received == COUNT
        capture.wait_rows(2 * COUNT * len(OUT + IN), {plain.inode})
        # THEN with the module the namespace's log stays as it is, and there is no warning
        if engine == "auto":
            assert plain.run("sysctl", "-n", *LOGGERS).stdout == before
            assert [text for level, text in capture.trace.notes if level == "warn"] == []
    # Without the packets that IPv6 itself sends.
    rows = [row for row in capture.rows if row.icmp in ("8/0", "0/0", "128/0", "129/0")]
    # AND each request and reply has exactly these rows
    assert Counter(map(_passed, rows)) == {
        passed: 2 * COUNT * (OUT + IN).count(passed) for passed in OUT + IN
    }
    assert capture.trace.engine == named
    # AND the rows of a packet are one journey, in the order of hooks and priorities
    journeys: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        journeys[row.journey].append(row)
    assert all(len({(row.src, row.icmp) for row in one}) == 1 for one in journeys.values())
    paths = Counter(tuple(sorted(map(_passed, one))) for one in journeys.values())
    # Over lo a packet remains the same skb, of which netlink does not know.
    ways = [OUT + IN] if named == "kernel+bpf" else [OUT, IN]
    assert paths == {tuple(sorted(one)): 2 * COUNT for one in ways}
    for one in journeys.values():
        last = "native" if one[-1].hook == "OUTPUT" else "filter"
        assert (one[0].table, one[-1].table) == ("raw", last)
    # AND rows over netlink lack what is known only where the packet is
    legacy, nft = named.split("+") if "+" in named else (named, named)
    for row in rows:
        assert row.engine == (nft if row.tables else legacy)
        seen = (row.engine != "netlink",) * 3
        assert (row.cost_ns is not None, row.pid is not None, row.skb is not None) == seen
    # AND the counters agree
    hits = Counter(
        (bool(row.tables), row.table, step.chain, step.rulenum)
        for row in capture.rows
        for step in row.path
        if step.match == "rule" and row.table != "native"
    )
    assert hits == _counted(plain, family)


def test_a_packet_that_legacy_accepts_and_nftables_drops_shows_both(family: int, pair: str) -> None:
    with Plain() as plain:
        plain.load(LEGACY.format(**WORDS[family]), family)
        drop = "table inet last {\n chain in {\n type filter hook input priority 20\n meta l4proto "
        _nft(plain, ["nft", "-f", "-"], drop + WORDS[family]["icmp"] + " drop\n }\n }\n")
        with captured(netns=plain.name, engine="auto") as capture:
            assert traffic.ping(plain.name, LOOPBACK[family], 1, timeout=2.0).received == 0
            capture.wait_rows(5, {plain.inode})
        rows = [row for row in capture.rows if row.icmp in ("8/0", "128/0")]
        last = [_passed(row) for row in rows if row.hook == "INPUT"]
        assert last == [
            ("INPUT", "filter", "MINE", 1, "rule", "ACCEPT", "INPUT:1>MINE:1"),
            ("INPUT", "last", "in", 1, "rule", "DROP", "in:1"),
        ]
        assert len({row.journey for row in rows if row.hook in ("PREROUTING", "INPUT")}) == 1


LONG = ("t" * 128, "c" * 128)
DHCP = "-p udp -m udp --sport 68 --dport 67 -j ACCEPT"
CHAIN = "add chain {} {{ type filter hook {} priority 0; }}"


def test_of_chains_and_tables_of_one_priority_nothing_follows_a_drop_and_names_are_whole(
    tmp_path: Path, pair: str
) -> None:
    # GIVEN chains of priority 0 made before and after the legacy table; that made last is
    # met first
    table, chain = LONG
    with Plain() as plain, contextlib.ExitStack() as stack:
        out, arriving = f"ip {table} out", f"ip {table} {chain}"
        nft = f"add table ip {table}\n{CHAIN.format(out, 'output')}\n"
        _nft(plain, ["nft", "-f", "-"], f"{nft}add rule {out} udp dport 10 drop\n")
        plain.load(raw_and_filter("-A INPUT -p udp --dport 9 -j DROP"), 4)
        nft = f"{CHAIN.format(arriving, 'input')}\nadd rule {arriving} udp dport 9 accept\n"
        _nft(plain, ["nft", "-f", "-"], nft)
        _nft(plain, ["iptables-nft-restore"], f"*filter\n:INPUT ACCEPT\n-A INPUT {DHCP}\nCOMMIT\n")
        sockets = {
            port: stack.enter_context(socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM))
            for port in (9, 67, 68)
        }
        for port, one in sockets.items():
            one.bind((LOOPBACK[4], port))
        with live(tmp_path / "ready", netns=plain.name, engine="auto") as agent:
            # WHEN the legacy table, nftables or nobody drops packets
            for _ in range(COUNT):
                sockets[68].sendto(b"", (LOOPBACK[4], 9))
                with contextlib.suppress(PermissionError):
                    sockets[68].sendto(b"", (LOOPBACK[4], 10))
                sockets[68].sendto(b"", (LOOPBACK[4], 67))
            agent.wait_rows(COUNT * (7 + 3 + 7))
            rows = agent.finish()
    of: dict[int | None, list[str]] = defaultdict(list)
    for row in rows:
        of[row.dport].append(in_short(row))
    # THEN nothing follows the drop, and nftables' long names are whole
    begin = ["OUTPUT raw OUTPUT:1/policy ACCEPT", "OUTPUT filter OUTPUT:1/policy ACCEPT"]
    assert of[10] == [*begin, f"OUTPUT {table} out:1 DROP"] * COUNT
    assert (
        of[9]
        == [
            *begin,
            f"OUTPUT {table} out:2/policy ACCEPT",
            "PREROUTING raw PREROUTING:1/policy ACCEPT",
            "INPUT filter INPUT:2/policy ACCEPT",
            f"INPUT {table} {chain}:1 ACCEPT",
            "INPUT filter INPUT:1 DROP",
        ]
        * COUNT
    )
    # AND rules of iptables-nft read as iptables prints them
    assert of[67].count("INPUT filter INPUT:1 ACCEPT") == COUNT
    texts = {(row.dport, row.table, row.rule) for row in rows if row.match == "rule"}
    assert texts == {
        (9, table, "udp dport 9 accept"),
        (9, "filter", "-p udp -m udp --dport 9 -j DROP"),
        (10, table, "udp dport 10 drop"),
        (67, "filter", DHCP),
    }


def test_with_both_engines_nothing_is_logged(family: int, pair: str) -> None:
    # GIVEN rules of both kinds in the initial namespace, whose packets the kernel can log
    name = "table inet ipt_loud"
    subprocess.run([f"{TOOLS[family]}-legacy", "-nL"], check=True, capture_output=True)
    subprocess.run(
        ["nft", "-f", "-"],
        input=f"{name} {{\n chain out {{\n{LOUD}\n }}\n}}\n".encode(),
        check=True,
    )
    try:
        log = Log()
        # WHEN packets that both engines trace go through them
        with captured(netns="/proc/1/ns/net", engine="auto") as capture:
            assert (
                subprocess.run(
                    ["ping", f"-{family}", "-c", "3", "-i", "0.2", LOOPBACK[family]],
                    stdout=subprocess.DEVNULL,
                ).returncode
                == 0
            )
            capture.wait_until(lambda: len(capture.trace.store) >= 6)
        assert {row.engine for row in capture.rows} == set(pair.split("+"))
        # THEN nothing was logged
        assert not log.lines()
    finally:
        subprocess.run(["nft", "delete", *name.split()], check=True)


def test_if_the_kernel_engine_cannot_run_it_falls_back_to_netlink_and_notes_why(
    tmp_path: Path,
) -> None:
    # GIVEN a kernel without BTF, WHEN no engine is chosen
    trace = tmp_path / "one"
    done = ipttrace("record", str(trace), "--duration", "0.5", hidden="/sys/kernel/btf")
    # THEN the netlink engine traces, and the recording contains the reason
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("engine=netlink\n"), done.stderr
    notes = [frame.json["text"] for frame in read_file(trace) if frame.kind == Kind.NOTE]
    assert any(note.endswith(f"; no kernel engine: {NO_BTF}") for note in notes)
