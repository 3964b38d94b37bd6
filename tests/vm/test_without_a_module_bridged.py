# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine shows the ports of a bridge, in nftables' family bridge and on IP's hooks.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

from collections import Counter

from ipttrace.lab import traffic
from ipttrace.lab.network import read_counters
from tests.lab.bridge import ADDRESSES, PORTS, Bridge
from tests.vm.conftest import SHARED, captured
from tests.vm.modules import loaded

pytestmark = SHARED

COUNT = 23
LEGACY, IP, BRIDGE = 0, 2, 7  # NFPROTO_* of tables
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
BRIDGED = f"""table bridge ports {{
    chain before {{
        type filter hook prerouting priority -300; policy accept;
        udp dport 9 iifname {PORTS[0]} counter
    }}
    chain through {{
        type filter hook forward priority 10; policy accept;
        udp dport 9 iifname {PORTS[0]} oifname {PORTS[1]} counter
    }}
    chain after {{
        type filter hook postrouting priority 0; policy accept;
        udp dport 9 oifname {PORTS[1]} counter
    }}
}}
table ip addresses {{
    chain before {{
        type filter hook prerouting priority 0; policy accept;
        udp dport 9 iifname br0 counter
    }}
    chain through {{
        type filter hook forward priority 10; policy accept;
        udp dport 9 iifname br0 counter
    }}
}}
"""


def test_bpf_shows_the_ports_of_a_bridged_packet_in_each_kind_of_table() -> None:
    physdev = "-m physdev --physdev-in {} --physdev-out {} --physdev-is-bridged".format(*PORTS)
    with loaded("br_netfilter"), Bridge() as bridge:
        # GIVEN a legacy rule that counts packets from port to port
        rules = f"{FILTER}-A FORWARD -p udp -m udp --dport 9 {physdev}\nCOMMIT\n"
        bridge.run("iptables-legacy-restore", text=rules)
        # AND nftables' rules that do: on the bridge itself, and on IP's hooks
        bridge.run("nft", "-f", "-", text=BRIDGED)
        with captured("udp dst port 9", netns=bridge.name, engine="bpf") as capture:
            sent = traffic.udp(bridge.hosts[0], ADDRESSES[1], 9, COUNT).sent
            assert sent == COUNT
            capture.wait_rows(6 * COUNT)
        counters = read_counters(bridge.run("iptables-legacy-save", "-c").stdout)
        listed = bridge.run("nft", "list", "ruleset").stdout
    assert counters["filter", "FORWARD", 1][0] == COUNT, counters
    # THEN all have counted all packets, as far as nftables knows the ports
    assert listed.count(f"counter packets {COUNT} ") == 5, listed
    # AND rows have the ports
    ports = Counter((row.tables, row.hook, row.physin, row.physout) for row in capture.rows)
    assert ports == {
        (BRIDGE, "PREROUTING", PORTS[0], None): COUNT,
        (BRIDGE, "FORWARD", *PORTS): COUNT,
        (BRIDGE, "POSTROUTING", None, PORTS[1]): COUNT,
        (IP, "PREROUTING", PORTS[0], None): COUNT,
        (LEGACY, "FORWARD", *PORTS): COUNT,
        (IP, "FORWARD", *PORTS): COUNT,
    }
    # AND devices as rules of that place match them
    devices = {(row.tables, row.in_, row.out) for row in capture.rows if row.hook == "FORWARD"}
    assert devices == {(BRIDGE, *PORTS), (IP, "br0", "br0"), (LEGACY, "br0", "br0")}
