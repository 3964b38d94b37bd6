# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the lab network that are in no rule: to practise on, and to show what drops tell.

Must not send traffic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ipttrace.lab.network import addresses as at

ANY: Final = "any"

# What is done on the router, commands without a shell.
FAULTS: Final[Mapping[str, Sequence[str]]] = {
    # The way back to the client leads over the other device.
    "rp-filter": (
        "sysctl -qw net.ipv4.conf.lan0.rp_filter=1",
        f"ip route add {at.CLIENT4}/32 via {at.SERVER4} dev wan0",
    ),
    "forwarding": ("sysctl -qw net.ipv4.ip_forward=0",),
    "route": (f"ip route add unreachable {at.SERVER4}/32",),
    # Nobody answers for the address.
    "neighbour": (
        f"ip neigh del {at.SERVER4} dev wan0",
        "ip link set wan0 arp on",
    ),
    "loss": ("tc qdisc add dev wan0 root netem loss 30%",),
}


def plant(name: str, run: Callable[[list[str]], object]) -> None:
    """Plants a fault; `name`: of FAULTS, or ANY; `run`: runs a command on the router."""
    chosen = random.choice(sorted(FAULTS)) if name == ANY else name
    for command in FAULTS[chosen]:
        run(command.split())
