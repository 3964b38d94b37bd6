# SPDX-License-Identifier: GPL-2.0-only
"""Places in the kernel's code, as text: "ip_rcv_finish_core+0x1d2 [module]".  Must not do I/O."""

from __future__ import annotations

from typing import Final

# Reasons that do not say anything (enum skb_drop_reason, include/net/dropreason-core.h).
UNSPECIFIED: Final = ("", "NOT_SPECIFIED", "NOT_DROPPED_YET")
_NETFILTER_REASON: Final = "NETFILTER_DROP"
# Where the kernel frees what a hook has refused (net/netfilter/core.c).
_NETFILTER: Final = ("nf_hook_slow", "nf_hook_slow_list")


def function(place: str) -> str:
    """Returns the function's name: without offset, module, and what the compiler appended."""
    return place.split("+", 1)[0].split(" ", 1)[0].split(".", 1)[0]


def is_netfilter(reason: str, place: str) -> bool:
    """Whether netfilter's hooks have dropped the packet: a rule's verdict, or conntrack's."""
    if reason == _NETFILTER_REASON:
        return True
    return reason in UNSPECIFIED and function(place) in _NETFILTER
