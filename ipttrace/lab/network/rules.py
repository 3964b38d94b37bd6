# SPDX-License-Identifier: GPL-2.0-only
"""The lab network's iptables rules, as iptables-restore reads them.

A new user sees these in the demo, so they look like the rules of a maintained
router.  tests/lab/scenarios.py depends on every rule's number: change both
together.  Must not import anything of ipttrace except addresses.
"""

from __future__ import annotations

from typing import Final

from ipttrace.lab.network import addresses as at

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

# Rejects packets in the sender's context: the answer is sent from inside a call.
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

# No rule here needs conntrack, which would reassemble fragments before any table
# sees them: this is the one place where fragments traverse tables.
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

_VALUES: Final = {
    4: {
        "guest": at.GUEST4,
        "icmp": "icmp",
        "lan": "10.1.0.0/24",
        "router": at.ROUTER4,
        "server": at.SERVER4,
        "web": f"{at.SERVER4}:80",
        "unreach": "icmp-port-unreachable",
        "fragment": "-f",
    },
    6: {
        "guest": at.GUEST6,
        "icmp": "ipv6-icmp",
        "lan": "fd00:1::/64",
        "router": at.ROUTER6,
        "server": at.SERVER6,
        "web": f"[{at.SERVER6}]:80",
        "unreach": "icmp6-port-unreachable",
        "fragment": "-m frag",
    },
}


def ruleset(role: str, family: int) -> str:
    """Returns the rules of client, router or server for family 4 or 6."""
    text = {"client": _CLIENT, "router": _ROUTER, "server": _SERVER}[role]
    return text.format(**_VALUES[family])


def synproxy(family: int) -> str:
    """Returns the router's additional rules that put SYNPROXY before the server's port 8888.

    They are inserted at the top, so later rule numbers grow by two in FORWARD
    and by one in raw PREROUTING.
    """
    server = _VALUES[family]["server"]
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
