# SPDX-License-Identifier: GPL-2.0-only
"""A recording has the counters that the kernel has, and none where nothing counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.stream.decoder import read_file
from ipttrace.stream.frames import Kind
from ipttrace.trace.rules import NFT, Rulesets
from ipttrace.trace.session import Trace
from ipttrace.trace.tally.listing import Listings, kernel_packets
from ipttrace.trace.tally.rules import RulesTally
from tests.netns.ruleset_namespace import IP, RulesetNamespace, ruleset_namespace
from tests.program import ipttrace

SENT = 23


@pytest.fixture
def space() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def counted(space: RulesetNamespace, folder: Path) -> Rulesets:
    """The rules and counters in a recording."""
    recording = folder / "recording"
    argv = ["record", str(recording), "--engine", "netlink", "--netns", Path(space.path).name]
    done = ipttrace(*argv, "--duration", "2", "icmp")
    assert done.returncode == 0, done.stderr
    trace = Trace()
    kinds = set()
    for frame in read_file(recording):
        kinds.add(frame.kind)
        trace.feed(frame)
    assert Kind.COUNTERS in kinds
    return trace.rulesets


def packets(space: RulesetNamespace, rulesets: Rulesets, table: str) -> dict[str, list[int | None]]:
    """Packets of each rule and the policy of each chain, as the rules view shows them."""
    listing = Listings(RulesTally(), Trace().store.names).of(0, space.inode, rulesets)
    (found,) = (one for one in listing.tables if (one.family, one.table) == (NFT + IP, table))
    return {
        chain.chain: [kernel_packets(chain, key) for key in chain.keys] for chain in found.chains
    }


def test_policies_of_iptables_nft_have_the_counters_that_iptables_saves(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN packets that only the policies decided
    rules = ":INPUT ACCEPT [7:700]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:own - [0:0]\n"
    rules += "[3:99] -A INPUT -p udp -j ACCEPT\n"
    space.run("iptables-nft-restore", "-c", input=f"*filter\n{rules}COMMIT\n")
    space.run("ping", "-c", str(SENT), "-i", "0.002", "-q", "127.0.0.1")
    found = packets(space, counted(space, tmp_path), "filter")
    # THEN each policy has what iptables says
    saved = space.run("iptables-nft-save", "-c", "-t", "filter")
    truth = {
        name: None if policy == "-" else int(count)
        for name, policy, count in re.findall(r"^:(\S+) (\S+) \[(\d+):", saved, re.MULTILINE)
    }
    assert truth == {"INPUT": 7 + 2 * SENT, "FORWARD": 0, "OUTPUT": 2 * SENT, "own": None}
    assert {name: lines[-1] if lines else None for name, lines in found.items()} == truth
    assert found["INPUT"] == [3, 7 + 2 * SENT]


def test_policies_that_the_kernel_does_not_count_have_no_counter(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN chains that iptables-nft made for its first rule: it has no counters for policies
    space.iptables("-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
    space.run("ping", "-c", str(SENT), "-i", "0.002", "-q", "127.0.0.1")
    assert ":INPUT ACCEPT [0:0]" in space.run("iptables-nft-save", "-c")
    found = packets(space, counted(space, tmp_path), "filter")
    assert found == {"INPUT": [0, None]}


def test_rules_of_nft_have_counters_where_they_count(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    space.nft(
        "table ip t { chain o { type filter hook output priority 0; policy accept;\n"
        "icmp type echo-request counter\nicmp type echo-reply\nudp dport 9 counter drop\n}; }"
    )
    space.run("ping", "-c", str(SENT), "-i", "0.002", "-q", "127.0.0.1")
    found = packets(space, counted(space, tmp_path), "t")
    listed = json.loads(space.run("nft", "-j", "list", "chain", "ip", "t", "o"))["nftables"]
    truth = [
        next((of["counter"]["packets"] for of in one["rule"]["expr"] if "counter" in of), None)
        for one in listed
        if "rule" in one
    ]
    assert truth == [SENT, None, 0]
    # THEN a rule without a counter has none, not 0; nor has the policy, of which nft tells nothing
    assert found == {"o": [*truth, None]}
