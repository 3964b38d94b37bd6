# SPDX-License-Identifier: GPL-2.0-only
"""Traffic for the lab network: senders, servers and a steady background mix.

Sockets are created in a namespace given by name; the caller stays in its own.
Senders send exactly what they are called for: use addresses of the lab network
only.

- ``senders``: ping, UDP, DNS, SYN, GRE, ESP, SCTP
- ``connections``: TCP connections and web pages
- ``sendmmsg``: floods
- ``sockets``: code shared by these
- ``packets``: bytes of packets that ordinary sockets do not send
- ``server``: the servers
- ``mix``: the background traffic of the demo
- ``cli``, ``__main__``: ``python -m ipttrace.lab.traffic --help``

Must not import tui, view or textual.
"""

from __future__ import annotations

from ipttrace.lab.traffic.connections import Connection, tcp, web
from ipttrace.lab.traffic.senders import ask, esp, gre, ping, sctp, syn, udp
from ipttrace.lab.traffic.sendmmsg import flood
from ipttrace.lab.traffic.sockets import Counts

__all__ = [
    "Connection",
    "Counts",
    "ask",
    "esp",
    "flood",
    "gre",
    "ping",
    "sctp",
    "syn",
    "tcp",
    "udp",
    "web",
]
