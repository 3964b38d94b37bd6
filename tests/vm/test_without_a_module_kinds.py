# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine sees every kind of chain and packet that nftables knows, as its rules count it.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections import Counter, defaultdict
from pathlib import Path

from ipttrace.lab.network.ns import call_in, socket_in
from ipttrace.trace.row import Row
from tests.lab.queue import queue
from tests.vm.conftest import SHARED, captured
from tests.vm.live import Live, is_whole, live
from tests.vm.paired import FAR, NEAR, Hits, counted, hits, load, paired
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

pytestmark = SHARED

COUNT = 23
UDP = socket.SOCK_DGRAM


def exchange(near: Plain, far: Plain, family: int, size: int = 29, options: bytes = b"") -> None:
    """Sends COUNT datagrams to port 9, each of which is answered."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with socket_in(far.name, kind, UDP) as server, socket_in(near.name, kind, UDP) as client:
        server.bind((FAR[family], 9))
        for one in (server, client):
            one.settimeout(PATIENCE)
        if options:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, options)
        client.connect((FAR[family], 9))
        for _ in range(COUNT):
            client.send(b"x" * size)
            data, peer = server.recvfrom(1 << 16)
            assert len(data) == size
            server.sendto(b"y", peer)
            client.recv(16)


def complete(one: Live, rows: list[Row], rules: Hits) -> None:
    """Checks that rows have hit each rule as often as nft has counted, and lack nothing."""
    assert hits(rows, rules) == rules
    assert one.trace.missed == one.trace.lost == 0
    for row in rows:
        assert is_whole(row), row
        assert row.rule or row.match != "rule", row


FAMILIES = """table arp requests {
    chain in { type filter hook input priority 0; policy accept;
        arp operation reply counter
    }
    chain out { type filter hook output priority 0; policy accept;
        arp operation request counter
    }
}
table netdev wire {
    chain out { type filter hook egress device eth0 priority 0; policy accept;
        ip protocol udp counter
        ip6 nexthdr udp counter
    }
    chain in { type filter hook ingress device eth0 priority 0; policy accept;
        ip protocol udp counter
    }
}
table ip6 six {
    chain in { type filter hook prerouting priority 10; policy accept;
        meta l4proto udp counter
    }
}
"""


def test_arp_and_the_hooks_of_devices(tmp_path: Path) -> None:
    # GIVEN rules for ARP, and where a device sends and receives
    with paired() as (near, far):
        load(near, FAMILIES)
        one = live(near, tmp_path / "ready", engine="bpf")
        # WHEN packets are sent to a neighbour that is not known yet
        near.run("ip", "neigh", "flush", "all")
        for family in (4, 6):
            exchange(near, far, family)
        rows = one.finish()
        rules = counted(near)
    # THEN rows are as many as nft has counted
    assert rules["wire", "out", 1] == rules["wire", "out", 2] == rules["wire", "in", 1] == COUNT
    assert rules["six", "in", 1] == COUNT
    assert rules["requests", "in", 1] > 0
    complete(one, rows, rules)
    # AND a packet is followed from the device's ingress on
    hooks = {(row.table, row.chain): row.hook for row in rows}
    assert hooks["wire", "in"] == "INGRESS"
    assert hooks["wire", "out"] == "EGRESS"
    wire = {row.journey for row in rows if row.hook == "INGRESS"}
    six = {row.journey for row in rows if row.table == "six" and row.path[0].match == "rule"}
    assert len(six & wire) == len(six) == COUNT


STEPS = """table inet steps {
    set known { type inet_service; elements = { 9, 11 }; }
    map marks { type inet_service : mark; elements = { 9 : 0x17, 11 : 0x18 }; }
    map ways { type mark : verdict; elements = { 0x17 : jump first, 0x18 : drop }; }
    chain third { udp dport 9 counter return; counter; }
    chain second { jump third; counter; }
    chain first { counter jump second; counter; }
    chain later { type filter hook prerouting priority 20; policy accept;
        udp dport 9 counter
    }
    chain before { type filter hook prerouting priority 10; policy accept;
        udp dport @known counter meta mark set udp dport map @marks
        meta mark vmap @ways
        ip frag-off & 0x1fff != 0 counter
        frag frag-off > 0 counter
        meta l4proto udp exthdr hbh exists counter
    }
}
"""
# A hop-by-hop header of 8 bytes: next header and length are filled in; PadN.
HOP_BY_HOP = bytes((0, 0, 1, 4, 0, 0, 0, 0))


def test_sets_maps_fragments_and_extension_headers(tmp_path: Path) -> None:
    # GIVEN rules with sets, maps and verdict maps, where packets come in
    with paired() as (near, far):
        load(far, STEPS)
        one = live(far, tmp_path / "ready", engine="bpf")
        # WHEN datagrams of one and of three fragments, and some with an extension header, come
        for family in (4, 6):
            exchange(near, far, family)
            exchange(near, far, family, size=4000)
        exchange(near, far, 6, options=HOP_BY_HOP)
        rows = one.finish()
        rules = counted(far)
    # THEN rows are as many as nft has counted
    assert rules["steps", "third", 1] == 5 * COUNT  # in first fragments, and whole packets
    assert rules["steps", "before", 3] == rules["steps", "before", 4] == 2 * COUNT
    assert rules["steps", "before", 5] == COUNT
    complete(one, rows, rules)
    # AND know marks, ports and families through all of that
    ends = [(row, row.path[0]) for row in rows if row.path]
    later = [row for row, step in ends if (step.chain, step.match) == ("later", "rule")]
    assert {row.mark for row in later} == {0x17}
    assert {row.dport for row in later} == {9}
    assert Counter(row.family for row in later) == {4: 2 * COUNT, 6: 3 * COUNT}


def test_a_packet_that_a_program_had_in_a_queue_goes_on_as_one_journey(tmp_path: Path) -> None:
    # GIVEN a rule that hands packets to a program, between two other chains
    rules_text = """table inet queued {
        chain first { type filter hook output priority 0; policy accept; udp dport 9 counter; }
        chain handed { type filter hook output priority 10; policy accept;
            udp dport 9 counter queue num 5
        }
        chain last { type filter hook output priority 20; policy accept; udp dport 9 counter; }
    }
    """
    subprocess.run(["modprobe", "nfnetlink_queue"], check=True)
    with Plain() as plain, socket_in(plain.name, socket.AF_INET, UDP) as heard:
        heard.bind((LOOPBACK[4], 9))
        heard.settimeout(PATIENCE)
        load(plain, rules_text)
        bound = threading.Event()

        def accept() -> None:
            with queue(5) as handed:
                bound.set()
                for _ in range(COUNT):
                    handed.accept_one()

        program = threading.Thread(target=lambda: call_in(plain.name, accept))
        program.start()
        assert bound.wait(60)
        one = live(plain, tmp_path / "ready", engine="bpf")
        # WHEN packets pass
        with socket_in(plain.name, socket.AF_INET, UDP) as sender:
            for _ in range(COUNT):
                sender.sendto(b"x", (LOOPBACK[4], 9))
                heard.recv(16)
        program.join()
        rows = one.finish()
        rules = counted(plain)
    # THEN each has a row before, one that hands it over, and one behind, in one journey
    assert set(rules.values()) == {COUNT}
    complete(one, rows, rules)
    ways: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.time):
        if row.hook == "OUTPUT":
            ways[row.journey].append(row)
    expected = [("first", "ACCEPT"), ("handed", "QUEUE"), ("last", "ACCEPT")]
    found = [[(row.chain, (row.verdict or "").split()[0]) for row in way] for way in ways.values()]
    assert found == [expected] * COUNT


FLOWS = """table inet flows {
    flowtable fast { hook ingress priority 0; devices = { eth0, eth1 }; }
    chain through { type filter hook forward priority 0; policy accept;
        ip protocol udp counter
        ip protocol udp flow add @fast
    }
}
"""


def test_packets_that_a_flow_table_takes_past_the_hooks_have_no_rows(tmp_path: Path) -> None:
    # GIVEN a router with a flow table
    with paired() as (near, router), Plain("ipt-last") as last:
        router.run(
            *("ip", "link", "add", "eth1", "type", "veth"),
            *("peer", "name", "eth0", "netns", last.name),
        )
        for one, device, address in ((router, "eth1", "10.79.0.1"), (last, "eth0", "10.79.0.2")):
            one.run("ip", "address", "add", f"{address}/24", "dev", device)
            one.run("ip", "link", "set", device, "up")
        near.run("ip", "route", "add", "default", "via", FAR[4])
        last.run("ip", "route", "add", "default", "via", "10.79.0.1")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        load(router, FLOWS)
        traced = live(router, tmp_path / "ready", engine="bpf")
        # WHEN a flow is forwarded in both directions
        with (
            socket_in(last.name, socket.AF_INET, UDP) as server,
            socket_in(near.name, socket.AF_INET, UDP) as client,
        ):
            server.bind(("10.79.0.2", 9))
            for end in (server, client):
                end.settimeout(PATIENCE)
            client.bind((NEAR[4], 1009))
            for _ in range(COUNT):
                client.sendto(b"x", ("10.79.0.2", 9))
                server.recv(16)
                server.sendto(b"y", (NEAR[4], 1009))
                client.recv(16)
        rows = traced.finish()
        rules = counted(router)
    # THEN only those that met the chain have rows, as nft has counted
    assert 0 < rules["flows", "through", 1] < 2 * COUNT
    complete(traced, rows, rules)


def test_several_namespaces_are_traced_at_once() -> None:
    # GIVEN two namespaces with rules of their own
    rules_text = (
        "table inet own {{ chain {} {{ type filter hook prerouting priority 0; policy accept;\n"
        "meta l4proto udp counter\n}}\n}}\n"
    )
    with paired() as (near, far):
        load(near, rules_text.format("nearby"))
        load(far, rules_text.format("away"))
        # WHEN both are traced
        with captured("udp port 9", engine="bpf", netns="all") as capture:
            exchange(near, far, 4)
            capture.wait_rows(2 * COUNT, {near.inode, far.inode})
        rules = counted(near) + counted(far)
        inodes = near.inode, far.inode
    # THEN each row is in its namespace
    assert rules == {("own", "nearby", 1): COUNT, ("own", "away", 1): COUNT}
    found = Counter((row.netns, row.chain) for row in capture.rows if row.table == "own")
    assert found == {(inodes[0], "nearby"): COUNT, (inodes[1], "away"): COUNT}


def test_what_a_container_sends_has_its_pid_and_name(tmp_path: Path) -> None:
    # GIVEN a process in namespaces of its own, with a name of its own, and iptables-nft's rules
    program = (
        "import socket,sys; open('/proc/self/comm','w').write('contained'); sys.stdin.read(1)\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range({COUNT}): one.sendto(b'x', ('{LOOPBACK[4]}', 9))\n"
        "print('sent', flush=True); sys.stdin.read(1)\n"
    )
    with Plain() as plain, socket_in(plain.name, socket.AF_INET, UDP) as heard:
        heard.bind((LOOPBACK[4], 9))
        plain.run("iptables-nft", "-A", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "ACCEPT")
        inside = ("unshare", "--pid", "--mount", "--fork", "--mount-proc", "python3", "-c", program)
        with subprocess.Popen(
            ["ip", "netns", "exec", plain.name, *inside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as contained:
            assert contained.stdin is not None
            assert contained.stdout is not None
            one = live(plain, tmp_path / "ready", engine="bpf")
            contained.stdin.write(b"1")
            contained.stdin.flush()
            # WHEN it sends
            assert contained.stdout.readline() == b"sent\n"
            children = Path(f"/proc/{contained.pid}/task/{contained.pid}/children").read_text()
            rows = [row for row in one.finish() if row.hook == "OUTPUT"]
    # THEN rows have its pid as the host sees it, and its name
    (pid,) = map(int, children.split())
    assert len(rows) == COUNT
    assert {(row.pid, row.comm, row.chain, row.rulenum) for row in rows} == {
        (pid, "contained", "OUTPUT", 1)
    }
