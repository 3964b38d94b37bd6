# SPDX-License-Identifier: GPL-2.0-only
"""The demo's network and traffic: the lab network with rules of every kind.

Router and client use iptables-nft; the server uses iptables-legacy if the host
has it; router and server also have native nftables tables.  One flow is dropped
as a puzzle for the user, see processes.PUZZLE.  Must not load modules, which an
ordinary user cannot, nor import tui, view or textual.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Final

from ipttrace.lab import traffic
from ipttrace.lab.network import ROLES, Network, nft
from ipttrace.lab.network import addresses as at
from ipttrace.lab.network import rules as lab_rules
from ipttrace.lab.network.load import load, restore
from ipttrace.lab.network.nft import HTTPS
from ipttrace.lab.network.ns import NetworkError, enter
from ipttrace.lab.traffic import mix

_PREFIX: Final = "ipt"
ROUTER: Final = f"{_PREFIX}-router"
_RATE: Final = 40.0  # packets/s, approximately: slow enough to read


class DemoNetwork(Network):
    """The lab network with rules of all kinds, in /run/netns of this mount namespace.

    `backends` is the backend of the iptables rules for each (role, family).
    """

    def __init__(self) -> None:
        super().__init__(_PREFIX, strict=False, backend="nft")
        self.backends: dict[tuple[str, int], str] = {}

    def _preload(self) -> subprocess.Popen[bytes] | None:
        return None  # the kernel autoloads what an ordinary user may use

    def _load_rules(self) -> None:
        for role in ROLES:
            for family in self.families:
                self.backends[role, family] = self._load_any(role, family)
            if text := nft.tables(role):
                self.run(role, ["nft", "-f", "-"], text=text)

    def _load_any(self, role: str, family: int) -> str:
        """Loads the rules; returns the backend that worked."""
        text = rules(role, family)
        if role == "server":
            try:
                load(self.server, restore("legacy", family), text)
            except NetworkError:
                # Not installed, not in this kernel, or in a module that only root may load.
                pass
            else:
                return "legacy"
        self._load(role, family, text)
        return self.backend


def rules(role: str, family: int) -> str:
    """Returns the lab's rules, with HTTPS accepted by router and server."""
    text = lab_rules.ruleset(role, family)
    last, added = {
        "client": ("", ""),
        "router": ("-A SERVICES -p sctp -j ACCEPT\n", f"-A SERVICES {_https()}"),
        "server": ("8888 -j ACCEPT\n", f"-A INPUT {_https()}"),
    }[role]
    return text.replace(last, last + added) if last else text


def _https() -> str:
    return f'-p tcp -m tcp --dport {HTTPS} -m comment --comment "https" -j ACCEPT\n'


def _steps(client: str) -> list[mix.Step]:
    def syn(dst: str) -> Callable[[], object]:
        return lambda: traffic.syn(client, dst, HTTPS, 1)

    # Uploads are small: an ordinary user's netlink buffers are.
    regular = mix.steps(client, bulk=1 << 16)
    return [*regular, (1, syn(at.SERVER4)), (2, syn(at.SERVER6))]


def run() -> None:
    """Runs network and traffic until killed; prints "ready" once both are up.

    Raises NetworkError if they cannot be set up.
    """
    with DemoNetwork() as network:
        # Leaves the initial network namespace, which then ends: it is not part of the demo.
        enter(ROUTER)
        mix.run(network.prefix, _RATE, None, None, _steps(network.client))
