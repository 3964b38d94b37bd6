# SPDX-License-Identifier: GPL-2.0-only
"""Native nftables tables for the lab network: a map, a set, verdict maps and jumps.

They stand beside what iptables says there, as on hosts where two people look
after one firewall.  Must not import anything of ipttrace but network_rules.
"""

from __future__ import annotations

from typing import Final

from ipttrace.lab.network import rules

HTTPS: Final = 443

# After iptables' own FORWARD: what that has dropped never comes here.
_ROUTER: Final = f"""\
table inet guard {{
	set banned {{
		type ipv4_addr
		flags interval
		elements = {{ {rules.GUEST4}, 192.0.2.0/24 }}
	}}
	map class {{
		type inet_service : mark
		elements = {{ 53 : 0x10, 80 : 0x20, 5001 : 0x30 }}
	}}
	chain forward {{
		type filter hook forward priority filter + 10; policy accept;
		ip saddr @banned counter drop
		meta l4proto {{ tcp, udp }} meta mark set th dport map @class
		iifname "lan0" jump outbound
		counter
	}}
	chain outbound {{
		udp dport 7 counter reject with icmpx type port-unreachable comment "no echo"
		meta l4proto gre counter goto tunnels
		meta l4proto {{ icmp, ipv6-icmp }} counter return
		return
	}}
	chain tunnels {{
		ip daddr {rules.SERVER4} counter accept
		reject with icmpx type admin-prohibited
	}}
}}
"""

# The router and the server's own iptables let 443 through; the set here does not:
# somebody banned a network, and it was the one that the router masquerades to.
_SERVER: Final = f"""\
table inet shield {{
	set attackers {{
		type ipv4_addr
		flags interval
		elements = {{ 10.2.0.0/24, 198.51.100.0/24 }}
	}}
	chain input {{
		type filter hook input priority filter + 10; policy accept;
		iifname "lo" accept
		tcp dport vmap {{ {HTTPS} : jump https, 5001 : accept }}
	}}
	chain https {{
		ip saddr @attackers counter drop comment "seen in the log"
		counter accept
	}}
}}
"""


def tables(role: str) -> str:
    """What `nft -f` reads for client, router or server; empty where there is none."""
    return {"router": _ROUTER, "server": _SERVER}.get(role, "")
