# SPDX-License-Identifier: GPL-2.0-only
"""The lab network's addresses and legacy rules, as iptables-restore reads them.

This is what a new user sees in the demo, so it is laid out like a router that
somebody looks after.  scenarios.py counts on the number of every rule: change
both together.  Must not import anything of ipttrace.
"""

from __future__ import annotations

from typing import Final

#   client ──────── lan0  router  wan0 ──────── server
#   10.1.0.2     10.1.0.1      10.2.0.1     10.2.0.2
#   fd00:1::2   fd00:1::1      fd00:2::1   fd00:2::2
CLIENT4: Final = "10.1.0.2"
CLIENT6: Final = "fd00:1::2"
GUEST4: Final = "10.1.0.66"  # a second address of the client: the router drops it
GUEST6: Final = "fd00:1::66"
ROUTER4: Final = "10.1.0.1"
ROUTER6: Final = "fd00:1::1"
UPLINK4: Final = "10.2.0.1"
UPLINK6: Final = "fd00:2::1"
SERVER4: Final = "10.2.0.2"
SERVER6: Final = "fd00:2::2"

_ROUTER: Final = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -s {guest} -m comment --comment "guest machine, banned" -j DROP
-A PREROUTING -p udp -m udp --dport 514 -m comment --comment "syslog: no state" -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:MARKING - [0:0]
-A PREROUTING -i lan0 -j MARKING
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A MARKING -p {icmp} -j MARK --set-mark 0x1
-A MARKING -p tcp -m tcp --dport 8080 -j MARK --set-mark 0x50
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:PORTFORWARD - [0:0]
-A PREROUTING -d {router} -j PORTFORWARD
-A POSTROUTING -s {lan} -o wan0 -j MASQUERADE
-A PORTFORWARD -p tcp -m tcp --dport 8080 -m comment --comment "web server" \
-j DNAT --to-destination {web}
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:BLOCKLIST - [0:0]
:LOGDROP - [0:0]
:SERVICES - [0:0]
:SITE-RULES - [0:0]
:WEB - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A FORWARD -j SITE-RULES
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,UNTRACKED -j ACCEPT
-A FORWARD -d {server} -j SERVICES
-A FORWARD -p {icmp} -m comment --comment "ping" -j ACCEPT
-A BLOCKLIST -p udp -m udp --dport 4444 -j DROP
-A BLOCKLIST -p tcp -m tcp --dport 4444 -j DROP
-A LOGDROP -j LOG --log-prefix "dropped: "
-A LOGDROP -j DROP
-A SERVICES -p tcp -m tcp --dport 80 -j WEB
-A SERVICES -p udp -m udp --dport 53 -m comment --comment "DNS" -j ACCEPT
-A SERVICES -p tcp -m tcp --dport 25 -m comment --comment "no mail" \
-j REJECT --reject-with tcp-reset
-A SERVICES -p udp -m udp --dport 161 -m comment --comment "no SNMP" \
-j REJECT --reject-with {unreach}
-A SERVICES -p tcp -m tcp --dport 445 -j LOGDROP
-A SERVICES -p tcp -m multiport --dports 5001,8888 -j ACCEPT
-A SERVICES -p udp -m multiport --dports 7,5001 -j ACCEPT
-A SERVICES -p gre -j ACCEPT
-A SERVICES -p esp -j ACCEPT
-A SERVICES -p sctp -j ACCEPT
-A SITE-RULES -i lan0 -j BLOCKLIST
-A SITE-RULES -p {icmp} -m comment --comment "ping is decided below" -j RETURN
-A SITE-RULES -j RETURN
-A WEB -m conntrack --ctstate NEW -m comment --comment "new web connections" -j ACCEPT
COMMIT
"""

# Packets sent from inside a call, in the sender's own context.
_CLIENT: Final = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POLICY-OUT - [0:0]
-A OUTPUT ! -o lo -j POLICY-OUT
-A POLICY-OUT -p tcp -m tcp --dport 23 -m comment --comment "use ssh" \
-j REJECT --reject-with tcp-reset
-A POLICY-OUT -p udp -m udp --dport 69 -m comment --comment "no TFTP" \
-j REJECT --reject-with {unreach}
COMMIT
"""

# Nothing here asks for connection tracking: it would put fragments together
# before any table saw them, and this is where they can be seen.
_SERVER: Final = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING {fragment} -m comment --comment "fragments, counted"
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m multiport --dports 80,5001,8888 -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
COMMIT
"""

_WORDS: Final = {
    4: {
        "guest": GUEST4,
        "icmp": "icmp",
        "lan": "10.1.0.0/24",
        "router": ROUTER4,
        "server": SERVER4,
        "web": f"{SERVER4}:80",
        "unreach": "icmp-port-unreachable",
        "fragment": "-f",
    },
    6: {
        "guest": GUEST6,
        "icmp": "ipv6-icmp",
        "lan": "fd00:1::/64",
        "router": ROUTER6,
        "server": SERVER6,
        "web": f"[{SERVER6}]:80",
        "unreach": "icmp6-port-unreachable",
        "fragment": "-m frag",
    },
}


def ruleset(role: str, family: int) -> str:
    """The rules of client, router or server for family 4 or 6."""
    text = {"client": _CLIENT, "router": _ROUTER, "server": _SERVER}[role]
    return text.format(**_WORDS[family])


def synproxy(family: int) -> str:
    """Rules that put SYNPROXY before the server's port 8888, as additions to the router's.

    They go in front, so the numbers of FORWARD and raw PREROUTING move by two
    and by one.
    """
    server = _WORDS[family]["server"]
    return f"""\
*raw
-I PREROUTING 1 -d {server} -p tcp -m tcp --dport 8888 --syn -j CT --notrack
COMMIT
*filter
-I FORWARD 1 -d {server} -p tcp -m tcp --dport 8888 -m conntrack --ctstate INVALID,UNTRACKED \
-j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460
-I FORWARD 2 -d {server} -p tcp -m tcp --dport 8888 -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
