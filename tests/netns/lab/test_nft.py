# SPDX-License-Identifier: GPL-2.0-only
"""The lab rules count the same with iptables-nft as with legacy; its nftables tables load."""

from __future__ import annotations

import re
import shutil

import pytest

from ipttrace.lab import traffic
from ipttrace.lab.network import ROLES, Counters, Network, NetworkError, nft
from ipttrace.lab.network import addresses as at
from ipttrace.lab.traffic.server import Server
from tests.netns.labs import fresh_prefix


def _counted(prefix: str, backend: str) -> dict[tuple[str, int], Counters]:
    """Returns every rule's counters after traffic of all kinds."""
    with Network(prefix, backend=backend) as network, Server(network.server):
        assert traffic.ping(network.client, at.SERVER4, 23).received == 23
        assert traffic.ping(network.client, at.SERVER6, 23).received == 23
        assert traffic.ask(network.client, at.SERVER4, 53, 5).received == 5
        traffic.syn(network.client, at.SERVER4, 445, 7)
        traffic.udp(network.client, at.SERVER4, 4444, 11)
        traffic.udp(network.client, at.SERVER6, 161, 1)
        traffic.syn(network.client, at.SERVER4, 80, 3, source=at.GUEST4)
        traffic.udp(network.client, at.SERVER4, 69, 2)
        return {
            (role, family): {
                # iptables-nft lists an empty chain only once it has been used.
                rule: count
                for rule, count in network.counters(role, family).items()
                if count != (0, 0)
            }
            for role in ROLES
            for family in (4, 6)
        }


def test_iptables_nft_rules_count_like_legacy_rules(prefix: str) -> None:
    try:
        legacy = _counted(prefix, "legacy")
        native = _counted(fresh_prefix(), "nft")
    except NetworkError as error:
        if re.search("this kernel has no|is not installed", str(error)):
            pytest.skip(str(error))
        raise
    assert native == legacy
    assert legacy["router", 4]["mangle", "MARKING", 1] == (23, 23 * 84)


def test_nftables_tables_coexist_with_iptables_rules(prefix: str) -> None:
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    with Network(prefix, backend="nft") as network, Server(network.server):
        for role in ROLES:
            if text := nft.tables(role):
                network.run(role, ["nft", "-f", "-"], text=text)
        assert traffic.ping(network.client, at.SERVER4, 23).received == 23
        traffic.gre(network.client, at.SERVER4, 5)
        traffic.udp(network.client, at.SERVER4, 7, 3)
        listed = network.run("router", ["nft", "list", "chain", "inet", "guard", "forward"]).stdout
        assert "counter packets 46 " in listed  # GRE and echo have left the chain before
        listed = network.run("router", ["nft", "list", "table", "inet", "guard"]).stdout
        assert re.search(r"udp dport 7 counter packets 3 .* reject", listed)
        assert re.search(r"ip daddr 10\.2\.0\.2 counter packets 5 .* accept", listed)


def test_an_unknown_backend_is_a_one_line_error() -> None:
    with pytest.raises(NetworkError, match=r"^unknown backend 'x': use 'legacy' or 'nft'$"):
        Network(backend="x")
