# SPDX-License-Identifier: GPL-2.0-only
"""Numbers and names of protocols (IANA, RFC 5237), and what is decoded of each.

Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np

HOPOPTS: Final = 0
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
DCCP: Final = 33
ROUTING: Final = 43
FRAGMENT: Final = 44
GRE: Final = 47
ESP: Final = 50
AH: Final = 51
ICMPV6: Final = 58
NO_NEXT: Final = 59
DSTOPTS: Final = 60
SCTP: Final = 132
UDPLITE: Final = 136

NAMES: Final = {
    0: "HOPOPT",
    1: "ICMP",
    2: "IGMP",
    4: "IPIP",
    6: "TCP",
    8: "EGP",
    9: "IGP",
    12: "PUP",
    17: "UDP",
    27: "RDP",
    29: "TP4",
    33: "DCCP",
    41: "IPv6",
    43: "IPv6-Route",
    44: "IPv6-Frag",
    46: "RSVP",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
    59: "NONXT",
    60: "IPv6-Opts",
    88: "EIGRP",
    89: "OSPF",
    94: "IPIP",
    97: "EtherIP",
    98: "ENCAP",
    103: "PIM",
    108: "IPComp",
    112: "VRRP",
    115: "L2TP",
    124: "ISIS",
    132: "SCTP",
    133: "FC",
    135: "MH",
    136: "UDPLITE",
    137: "MPLS",
    139: "HIP",
    140: "Shim6",
    142: "ROHC",
    143: "Ethernet",
    255: "RAW",
}

# In the usual order of names: SYN,ACK; FIN,ACK; PSH,ACK.
_TCP_FLAGS: Final = (
    (0x002, "SYN"),
    (0x001, "FIN"),
    (0x004, "RST"),
    (0x008, "PSH"),
    (0x010, "ACK"),
    (0x020, "URG"),
    (0x040, "ECE"),
    (0x080, "CWR"),
    (0x100, "NS"),
)


def proto_name(number: int) -> str:
    """Returns ``TCP`` for 6; the number if it has no name here, "" if negative."""
    if number < 0:
        return ""
    return NAMES.get(number) or str(number)


def tcp_flag_names(flags: int) -> str:
    """Returns ``SYN,ACK`` for 0x12, ``NONE`` for 0."""
    return ",".join(name for bit, name in _TCP_FLAGS if flags & bit) or "NONE"


# What headers.py decodes of each protocol.  The element after 255 is for -1.
HAS_PORTS: Final = 1
IS_ICMP: Final = 2
IS_TUNNEL: Final = 3
DECODED: Final = np.zeros(257, np.uint8)
DECODED[[TCP, UDP, DCCP, SCTP, UDPLITE]] = HAS_PORTS
DECODED[[ICMP, ICMPV6]] = IS_ICMP
DECODED[[GRE, ESP, AH]] = IS_TUNNEL

# As in the kernel's ipv6_skip_exthdr(): mobility, HIP and shim6 headers count as the
# packet's protocol.
IS_EXTENSION: Final = np.zeros(256, bool)
IS_EXTENSION[[HOPOPTS, ROUTING, FRAGMENT, AH, DSTOPTS]] = True

# Messages with an identifier, which conntrack uses like a port (nf_conntrack_proto_icmp.c).
ICMP_QUERY: Final = np.zeros(256, bool)
ICMP_QUERY[[0, 8, 13, 14, 15, 16, 17, 18]] = True
ICMPV6_QUERY: Final = np.zeros(256, bool)
ICMPV6_QUERY[[128, 129, 139, 140]] = True

# Messages that quote the packet they are about.
ICMP_ERROR: Final = np.zeros(256, bool)
ICMP_ERROR[[3, 4, 5, 11, 12]] = True
ICMPV6_ERROR: Final = np.zeros(256, bool)
ICMPV6_ERROR[[1, 2, 3, 4]] = True
