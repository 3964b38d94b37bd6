# SPDX-License-Identifier: GPL-2.0-only
"""Native nftables tables for the lab network: a map, a set, a verdict map and jumps.

They exist beside the iptables rules, as on hosts where two people maintain one
firewall.  Must not import anything of ipttrace except addresses.
"""

from __future__ import annotations

from typing import Final

from ipttrace.lab.network import addresses as at

HTTPS: Final = 443

# After iptables' FORWARD: packets dropped there do not get here.
_ROUTER: Final = f"""\
table inet guard {{
	set banned {{
		type ipv4_addr
		flags interval
		elements = {{ {at.GUEST4}, 192.0.2.0/24 }}
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
		ip daddr {at.SERVER4} counter accept
		reject with icmpx type admin-prohibited
	}}
}}
"""

# The puzzle of the demo: the iptables rules of router and server accept port 443,
# but this set bans the network that the router masquerades to.
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
    """Returns text for `nft -f` for client, router or server; empty if there is none."""
    return {"router": _ROUTER, "server": _SERVER}.get(role, "")
