# SPDX-License-Identifier: GPL-2.0-only
"""Devices, addresses, routes and settings of the lab network, as text for ip(8) and sysctl.

Must not run anything.
"""

from __future__ import annotations

import re
from typing import Final

from ipttrace.lab.network import addresses as at

ROLES: Final = ("client", "router", "server")

# Fixed MAC addresses and permanent neighbours: the first packet needs no ARP or
# ND.  ARP and multicast are off before forwarding is switched on, so IPv6 joins no
# multicast groups and sends no reports: rules count only the packets sent by tests.
_MACS: Final = {
    "client": "02:00:0a:01:00:02",
    "lan0": "02:00:0a:01:00:01",
    "wan0": "02:00:0a:02:00:01",
    "server": "02:00:0a:02:00:02",
}
DEVICES: Final = {"client": ("eth0",), "router": ("lan0", "wan0"), "server": ("eth0",)}

SYSCTLS: Final = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",  # no link-local addresses
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # No rate limit: every rejected packet is answered, even in a flood.
    "ipv4/icmp_ratemask": "0",
    "ipv6/icmp/ratemask": "",
}
FORWARDING: Final = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}

# The two ends of a veth have different indexes: the kernel treats equal ones as a
# plain device, and may then check its carrier only after a second.
_ROUTER: Final = f"""\
link add lan0 index 2 address {_MACS["lan0"]} type veth \
peer name eth0 index 4 address {_MACS["client"]} netns {{client}}
link add wan0 index 3 address {_MACS["wan0"]} type veth \
peer name eth0 index 5 address {_MACS["server"]} netns {{server}}
link set lo up
link set lan0 arp off multicast off
link set wan0 arp off multicast off
addr add {at.ROUTER4}/24 dev lan0
addr add {at.ROUTER6}/64 dev lan0 nodad
addr add {at.UPLINK4}/24 dev wan0
addr add {at.UPLINK6}/64 dev wan0 nodad
link set lan0 up
link set wan0 up
neigh add {at.CLIENT4} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {at.GUEST4} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {at.CLIENT6} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {at.GUEST6} lladdr {_MACS["client"]} nud permanent dev lan0
neigh add {at.SERVER4} lladdr {_MACS["server"]} nud permanent dev wan0
neigh add {at.SERVER6} lladdr {_MACS["server"]} nud permanent dev wan0
"""

_CLIENT: Final = f"""\
link set lo up
link set eth0 arp off multicast off
addr add {at.CLIENT4}/24 dev eth0
addr add {at.GUEST4}/24 dev eth0
addr add {at.GUEST6}/64 dev eth0 nodad
addr add {at.CLIENT6}/64 dev eth0 nodad
link set eth0 up
neigh add {at.ROUTER4} lladdr {_MACS["lan0"]} nud permanent dev eth0
neigh add {at.ROUTER6} lladdr {_MACS["lan0"]} nud permanent dev eth0
route add default via {at.ROUTER4} dev eth0 src {at.CLIENT4}
route add default via {at.ROUTER6} dev eth0 src {at.CLIENT6}
"""

_SERVER: Final = f"""\
link set lo up
link set eth0 arp off multicast off
addr add {at.SERVER4}/24 dev eth0
addr add {at.SERVER6}/64 dev eth0 nodad
link set eth0 up
neigh add {at.UPLINK4} lladdr {_MACS["wan0"]} nud permanent dev eth0
neigh add {at.UPLINK6} lladdr {_MACS["wan0"]} nud permanent dev eth0
route add default via {at.UPLINK4} dev eth0
route add default via {at.UPLINK6} dev eth0
"""

# The router's text comes first: it creates the links.
_COMMANDS: Final = {"router": _ROUTER, "client": _CLIENT, "server": _SERVER}
_IPV6_LINE: Final = re.compile(r"^.*fd00:.*\n", re.MULTILINE)


def ip_batches(client: str, server: str, ipv6: bool) -> dict[str, str]:
    """Returns, in order, each role's text for ``ip -batch``.

    ``client`` and ``server`` name their namespaces; without ``ipv6`` the text
    has no IPv6 addresses.
    """
    texts = {role: text.format(client=client, server=server) for role, text in _COMMANDS.items()}
    return texts if ipv6 else {role: _IPV6_LINE.sub("", text) for role, text in texts.items()}
