# SPDX-License-Identifier: GPL-2.0-only
"""Netfilter's numbers and their names: families, hooks, tables, verdicts.

From linux/netfilter.h, netfilter_ipv4.h, netfilter_arp.h and x_tables' tables.  Every
other file takes them from here.  Must not import anything of ipttrace.
"""

from __future__ import annotations

from typing import Final

# Families of protocols (NFPROTO_*).  IPv4 and IPv6 equal AF_INET and AF_INET6.
NFPROTO_UNSPEC: Final = 0
NFPROTO_INET: Final = 1
NFPROTO_IPV4: Final = 2
NFPROTO_ARP: Final = 3
NFPROTO_NETDEV: Final = 5
NFPROTO_BRIDGE: Final = 7
NFPROTO_IPV6: Final = 10

IP_VERSIONS: Final[dict[int, int]] = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 6}
"""NFPROTO_* to the IP version, which is what rows, options and legacy tables use."""

NFT_FAMILIES: Final[dict[int, str]] = {
    NFPROTO_INET: "inet",
    NFPROTO_IPV4: "ip",
    NFPROTO_ARP: "arp",
    NFPROTO_NETDEV: "netdev",
    NFPROTO_BRIDGE: "bridge",
    NFPROTO_IPV6: "ip6",
}
"""NFPROTO_* to the family's name in nft."""

NFT_FAMILY_NUMBERS: Final[dict[str, int]] = {name: number for number, name in NFT_FAMILIES.items()}

# enum nf_inet_hooks, in the kernel's numbering: of IP, and of devices, which both have INGRESS.
IP_HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
HOOKS: Final = (*IP_HOOKS, "INGRESS", "EGRESS")
INGRESS: Final = HOOKS.index("INGRESS")
EGRESS: Final = HOOKS.index("EGRESS")
UNKNOWN_HOOK: Final = 255  # written by an engine that does not know the hook

# Of families with hooks of their own: to HOOKS.  NF_ARP_IN, NF_ARP_OUT, NF_ARP_FORWARD become
# the IP hook of the same direction; NF_NETDEV_INGRESS, NF_NETDEV_EGRESS.
FAMILY_HOOKS: Final[dict[int, dict[int, int]]] = {
    NFPROTO_ARP: {0: 1, 1: 3, 2: 2},
    NFPROTO_NETDEV: {0: INGRESS, 1: EGRESS},
}

NAT_PRIORITIES: Final[dict[int, int]] = {0: -100, 1: 100, 3: -100, 4: 100}
"""Where the kernel does NAT, by hook: there chains of type nat run, whatever their priority."""

# The legacy tables, in the order in which a packet meets them within one hook
# (priorities -300, -150, -100 or 100, 0, 50).
TABLES: Final = ("raw", "mangle", "nat", "filter", "security")

# Verdicts by number (NF_*), and the common numbers.
VERDICTS: Final = ("DROP", "ACCEPT", "STOLEN", "QUEUE", "REPEAT", "STOP")
DROP: Final = VERDICTS.index("DROP")
ACCEPT: Final = VERDICTS.index("ACCEPT")
STOLEN: Final = VERDICTS.index("STOLEN")
QUEUE: Final = VERDICTS.index("QUEUE")


def table_order(table: str) -> int:
    """Sorting key: legacy tables in the order a packet meets them, others behind them."""
    return TABLES.index(table) if table in TABLES else len(TABLES)
