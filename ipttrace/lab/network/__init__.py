# SPDX-License-Identifier: GPL-2.0-only
"""The lab network: client, router and server namespaces with rules in them.

It is isolated: the host's network is not changed.

- ``network``: Network, the context manager that sets it up and removes it
- ``addresses``: the nodes' addresses
- ``layout``: links, routes and sysctls
- ``rules``: iptables rules
- ``faults``: faults that are in no rule
- ``nft``: native nftables tables
- ``load``: loads rules, and reports missing kernel features
- ``counters``: reads rule counters
- ``links``: waits until links are up
- ``lock``: one owner for each network
- ``ns``: runs functions and commands in a network namespace

Must not send traffic (lab/traffic does), nor import bcc, pyroute2, tui or view.
"""

from __future__ import annotations

from ipttrace.lab.network.counters import Counters, read_counters
from ipttrace.lab.network.layout import ROLES
from ipttrace.lab.network.network import Network
from ipttrace.lab.network.ns import NetworkError

__all__ = ["ROLES", "Counters", "Network", "NetworkError", "read_counters"]
