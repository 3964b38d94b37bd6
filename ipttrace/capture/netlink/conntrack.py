# SPDX-License-Identifier: GPL-2.0-only
"""Decodes conntrack entries as netlink messages have them (nfnetlink_conntrack.h).

The same attributes are in log messages and in answers of conntrack's own netlink.
Must not do I/O, and must not loop over messages in Python.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array, Attributes, attributes

# enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto
_CTA_ORIG, _CTA_REPLY, _CTA_STATUS, _CTA_MARK, _CTA_ID, _CTA_ZONE = 1, 2, 3, 8, 12, 18
_CTA_TYPES: Final = 19
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE, _TUPLE_TYPES = 1, 2, 3, 4
_IP_TYPES: Final = 5  # v4 source 1, destination 2; v6 source 3, destination 4
_NUM, _SPORT, _DPORT, _ICMP, _ICMPV6, _PROTO_TYPES = 1, 2, 3, 4, 7, 10

# enum ip_conntrack_info
RELATED: Final = 1
REPLY: Final = 3  # from here on: in reply direction
UNTRACKED: Final = 7
# enum ip_conntrack_status
CONFIRMED: Final = 0x8
NAT: Final = 0x30  # IPS_SRC_NAT, IPS_DST_NAT
NAT_DONE: Final = 0x180
TEMPLATE: Final = 0x800

FIELDS: Final = [
    ("ct", "u8"),  # the entry's id in conntrack's netlink; 0: none
    ("ct_status", "u4"),
    ("ct_mark", "u4"),
    ("ct_zone", "u2"),
    ("ct_orig_sport", "u2"),  # of ICMP: sport is the id, dport is type << 8 | code
    ("ct_orig_dport", "u2"),
    ("ct_reply_sport", "u2"),
    ("ct_reply_dport", "u2"),
    ("ct_proto", "u1"),
    ("ct_orig_src", "u1", (16,)),
    ("ct_orig_dst", "u1", (16,)),
    ("ct_reply_src", "u1", (16,)),
    ("ct_reply_dst", "u1", (16,)),
]
"""The fields that `fill` fills in, as a dtype has them."""


def is_reported(release: str) -> bool:
    """Whether the kernel of this release reports conntrack in nftables' trace messages."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 16)


def fill(events: Array, which: Array, data: Array, at: Array, size: Array) -> None:
    """Fills in FIELDS of `events[which]` from the attributes of an entry in each message.

    `data`: the messages, uint8, shape (n, width); `at`, `size`: where in each its entry's
    attributes begin, and their length, shape (n,).
    """
    ct = _nest(data, at, size, _CTA_TYPES)
    events["ct"][which] = ct.integer(_CTA_ID, ">u4")
    events["ct_status"][which] = ct.integer(_CTA_STATUS, ">u4")
    events["ct_mark"][which] = ct.integer(_CTA_MARK, ">u4")
    zone = ct.integer(_CTA_ZONE, ">u2")
    for direction, kind in (("orig", _CTA_ORIG), ("reply", _CTA_REPLY)):
        tuples = _nest(data, ct.at[kind], ct.size[kind], _TUPLE_TYPES)
        zone = np.where(zone != 0, zone, tuples.integer(_TUPLE_ZONE, ">u2"))
        ip = _nest(data, tuples.at[_TUPLE_IP], tuples.size[_TUPLE_IP], _IP_TYPES)
        six = ip.has(3, 16)
        for end, v4 in (("src", 1), ("dst", 2)):
            address = np.where(six[:, None], ip.bytes(v4 + 2, 16), ip.bytes(v4, 16))
            address[~six, 4:] = 0
            events[f"ct_{direction}_{end}"][which] = address
        proto = _nest(data, tuples.at[_TUPLE_PROTO], tuples.size[_TUPLE_PROTO], _PROTO_TYPES)
        sport, dport = proto.integer(_SPORT, ">u2"), proto.integer(_DPORT, ">u2")
        for icmp in (_ICMP, _ICMPV6):
            has_id = proto.has(icmp, 2)
            if has_id.any():
                kinds = proto.integer(icmp + 1, "u1").astype(np.uint16)
                codes = proto.integer(icmp + 2, "u1")
                sport = np.where(has_id, proto.integer(icmp, ">u2"), sport)
                dport = np.where(has_id, kinds << 8 | codes, dport)
        events[f"ct_{direction}_sport"][which] = sport
        events[f"ct_{direction}_dport"][which] = dport
        if direction == "orig":
            events["ct_proto"][which] = proto.integer(_NUM, "u1")
    events["ct_zone"][which] = zone


def _nest(data: Array, at: Array, size: Array, types: int) -> Attributes:
    return attributes(data, at + size, at, types)
