# SPDX-License-Identifier: GPL-2.0-only
"""What is in the demo: the lab network as hosts have it today, and its traffic.

Router and client speak iptables-nft, the server legacy iptables where the host
has that, router and server have native nftables tables besides.  One flow is
dropped for whoever looks to find: see demo.py.  Must not import a user
interface, nor load a module: it may run for an ordinary user.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import ROLES, Network
from ipttrace.lab.network import nft as network_nft
from ipttrace.lab.network import rules as at
from ipttrace.lab.network.load import load, restore
from ipttrace.lab.network.nft import HTTPS
from ipttrace.lab.network.ns import NetworkError, enter
from ipttrace.lab.traffic import mix as traffic_mix

_PREFIX: Final = "ipt"
ROUTER: Final = f"{_PREFIX}-router"
_RATE: Final = 40.0  # packets/s, about: slow enough to be read


class DemoNetwork(Network):
    """The lab network with rules of all kinds, in /run/netns of this mount namespace.

    `kinds` says of each role and family how its iptables rules are told to the kernel.
    """

    def __init__(self) -> None:
        super().__init__(_PREFIX, strict=False, backend="nft")
        self.kinds: dict[tuple[str, int], str] = {}

    def _preload(self) -> subprocess.Popen[bytes] | None:
        return None  # the kernel loads what it may by itself

    def _load_rules(self) -> None:
        for role in ROLES:
            for family in self.families:
                self.kinds[role, family] = self._load_either(role, family)
            if text := network_nft.tables(role):
                self.run(role, ["nft", "-f", "-"], text=text)

    def _load_either(self, role: str, family: int) -> str:
        """The kind that it has become."""
        text = rules(role, family)
        if role == "server":
            try:
                load(self.server, restore("legacy", family), text)
            except NetworkError:
                # Not installed, not in this kernel, or a module that only root may load.
                pass
            else:
                return "legacy"
        self._load(role, family, text)
        return self.backend


def rules(role: str, family: int) -> str:
    """The lab's rules, and that router and server let HTTPS through."""
    text = at.ruleset(role, family)
    last, added = {
        "client": ("", ""),
        "router": ("-A SERVICES -p sctp -j ACCEPT\n", f"-A SERVICES {_https()}"),
        "server": ("8888 -j ACCEPT\n", f"-A INPUT {_https()}"),
    }[role]
    return text.replace(last, last + added) if last else text


def _https() -> str:
    return f'-p tcp -m tcp --dport {HTTPS} -m comment --comment "https" -j ACCEPT\n'


def _steps(client: str) -> list[traffic_mix.Step]:
    def syn(dst: str) -> Callable[[], object]:
        return lambda: traffic.syn(client, dst, HTTPS, 1)

    # Uploads are small: an ordinary user has little memory for what netlink tells.
    usual = traffic_mix.steps(client, bulk=1 << 16)
    return [*usual, (1, syn(at.SERVER4)), (2, syn(at.SERVER6))]


def run() -> None:
    """Network and traffic, until this process is killed; "ready" on stdout once both are there.

    Raises NetworkError where they cannot be had.
    """
    with DemoNetwork() as network:
        # The one that this process came in is to go: it is no part of the network.
        enter(ROUTER)
        traffic_mix.run(network.prefix, _RATE, None, None, _steps(network.client))
