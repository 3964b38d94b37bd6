# SPDX-License-Identifier: GPL-2.0-only
"""Fixed rows, also in the golden files: plain, nested, unusual and hostile ones.

Must not read a clock or anything else of this machine.
"""

from __future__ import annotations

from dataclasses import replace

from ipttrace.trace.row import Row, Step

START = 1795222923_123456789  # 2026-11-21T01:02:03.123456789Z

PLAIN = Row(
    index=0,
    time=START,
    engine="kernel",
    skb=0xFFFF888104A3B200,
    netns=4026531840,
    cpu=1,
    pid=4242,
    comm="ping",
    in_="eth0",
    out="eth1",
    family=4,
    hook="FORWARD",
    table="filter",
    chain="FORWARD",
    rulenum=2,
    match="rule",
    path=(Step("FORWARD", 2, "rule"),),
    rule=None,
    verdict="ACCEPT",
    cost_ns=850,
    len=84,
    proto="TCP",
    src="10.0.0.1",
    sport=40001,
    dst="192.168.100.200",
    dport=443,
    flags="SYN",
    icmp=None,
    frag=None,
    mark=0,
    mac_src="02:00:00:00:00:01",
    mac_dst="02:00:00:00:00:02",
    ct_state="NEW",
    ct_orig_src="10.0.0.1",
    ct_orig_sport=40001,
    ct_orig_dst="10.0.0.254",
    ct_orig_dport=8443,
    call=100,
    parent=None,
    journey=100,
    flow=1,
    partial=False,
)

POLICY = replace(
    PLAIN,
    index=1,
    time=START + 1_000,
    chain="FORWARD",
    rulenum=4,
    match="policy",
    path=(
        Step("FORWARD", 1, "rule"),
        Step("DOCKER-USER", 3, "return"),
        Step("FORWARD", 4, "policy"),
    ),
    verdict="DROP",
    cost_ns=12_345,
    mark=0x1,
)

IPV6 = replace(
    PLAIN,
    index=2,
    time=START + 999_999_999,
    family=6,
    in_=None,
    out="lo",
    hook="OUTPUT",
    chain="OUTPUT",
    path=(Step("OUTPUT", 2, "rule"),),
    proto="UDP",
    src="2001:db8::1",
    sport=53,
    dst="2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    dport=65535,
    flags=None,
    cost_ns=4_560_000,
    ct_orig_src="2001:db8::1",
    ct_orig_sport=53,
    ct_orig_dst="2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    ct_orig_dport=65535,
)

ICMP = replace(
    PLAIN,
    index=3,
    time=START + 2_000_000_000,
    in_="eth0",
    out=None,
    hook="INPUT",
    chain="INPUT",
    path=(Step("INPUT", 2, "rule"),),
    proto="ICMP",
    sport=None,
    dport=None,
    flags=None,
    icmp="8/0",
    frag="4660:1480+",
    rule="-A INPUT -p icmp -j ACCEPT",
    ct_orig_sport=None,
    ct_orig_dport=None,
)

# With everything unknown that can be.
UNKNOWN = Row(
    index=4,
    time=START + 3_000_000_000,
    engine="netlink",
    skb=None,
    netns=4026532999,
    cpu=None,
    pid=None,
    comm=None,
    in_=None,
    out=None,
    family=4,
    hook="PREROUTING",
    table="raw",
    chain=None,
    rulenum=None,
    match=None,
    path=(),
    rule=None,
    verdict=None,
    cost_ns=None,
    len=20,
    proto="253",
    src="10.0.0.1",
    sport=None,
    dst="10.0.0.2",
    dport=None,
    flags=None,
    icmp=None,
    frag=None,
    mark=0xFFFFFFFF,
    mac_src=None,
    mac_dst=None,
    ct_state=None,
    ct_orig_src=None,
    ct_orig_sport=None,
    ct_orig_dst=None,
    ct_orig_dport=None,
    call=104,
    parent=None,
    journey=104,
    flow=4,
    partial=True,
)

FORMULA = replace(PLAIN, index=5, comm="=cmd|' /C calc'!A0", in_="+1", out="@SUM(A1)", chain="＝x")
DELIMITERS = replace(
    PLAIN,
    index=6,
    chain='a,b"c\nd\re\tf',
    path=(Step('a,b"c\nd', 1, "rule"), Step("-x", 2, "return")),
)
ESCAPES = replace(
    PLAIN, index=7, comm="\x1b[2J\x1b]0;x\x07", chain="\u202eTPECCA\u200b", in_="\x9b1m"
)
MARKUP = replace(PLAIN, index=8, comm="[red]x[/red]", chain="[link=file:///]y", in_="\\[b]")
LONG = replace(
    PLAIN,
    index=9,
    chain="C" * 4000,
    path=(Step("C" * 4000, 1, "rule"), Step("FORWARD", 2, "rule")),
)
WIDE = replace(PLAIN, index=10, comm="防火墙", chain="Ä\u0301é🔥", in_="\udcff")
AFTER = replace(PLAIN, index=11, time=START + 4_000_000_000)
# Rules with comments of the greatest length and hostile text.
COMMENT = replace(
    PLAIN,
    index=12,
    time=START + 5_000_000_000,
    rule="-A FORWARD -m comment --comment \"=cmd|' /C calc'!A0 "
    + "\x1b[2J\x1b]0;owned\x07 \u202e[red]x[/red] "
    + "c" * 4000
    + '" -j DROP',
)
CALCULATED = replace(COMMENT, index=13, rule='=cmd()\r\n=HYPERLINK("http://evil","x"),"\x9b31m')

# Bridged and tracked in a zone, in a table of nftables.
BRIDGED = replace(
    PLAIN,
    index=14,
    time=START + 6_000_000_000,
    engine="netlink",
    netns=4026532999,
    in_="br0",
    out="br0",
    ct_state="INVALID",
    tables=2,
    trace_id=0x1F2E3D,
    ct_mark=0xCAFE,
    ct_zone=7,
    physin="=port1",
    physout="port2",
)

ROWS = (
    PLAIN,
    POLICY,
    IPV6,
    ICMP,
    UNKNOWN,
    FORMULA,
    DELIMITERS,
    ESCAPES,
    MARKUP,
    LONG,
    WIDE,
    AFTER,
    COMMENT,
    CALCULATED,
    BRIDGED,
)
HOSTILE = (FORMULA, DELIMITERS, ESCAPES, MARKUP, LONG, WIDE, COMMENT, CALCULATED)
