# SPDX-License-Identifier: GPL-2.0-only
"""The lab network comes up, counts, coexists with another, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from ipttrace.lab.network import ROLES, Network, NetworkError, read_counters
from ipttrace.lab.network import addresses as at
from ipttrace.lab.network.load import load
from ipttrace.lab.traffic import Counts, ping

HOLD = """
import sys
from ipttrace.lab.network import Network
with Network(sys.argv[1]):
    print("up", flush=True)
    sys.stdin.read()
"""


def _existing(prefix: str) -> list[str]:
    """Returns the roles whose namespaces exist."""
    return [role for role in ROLES if os.path.exists(f"/run/netns/{prefix}-{role}")]


def test_pings_of_both_families_are_answered_at_once(network: Network) -> None:
    assert ping(network.client, at.SERVER4, 23) == Counts(23, 23)
    assert ping(network.client, at.SERVER6, 23) == Counts(23, 23)


def test_an_idle_network_counts_nothing(network: Network) -> None:
    for role in ROLES:
        for family in (4, 6):
            counters = network.counters(role, family)
            assert {rule: n for rule, n in counters.items() if n != (0, 0)} == {}


@pytest.mark.parametrize("family", [4, 6])
def test_counters_are_numbered_as_iptables_lists_them(network: Network, family: int) -> None:
    command = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    ping(network.client, at.SERVER4 if family == 4 else at.SERVER6, 23)
    for table in ("raw", "mangle", "nat", "filter"):
        argv = [command, "-t", table, "-L", "-v", "-n", "-x", "--line-numbers"]
        chain = ""
        listed: dict[tuple[str, str, int], int] = {}
        for line in network.run("router", argv).stdout.splitlines():
            if head := re.match(r"Chain (\S+) \((?:policy \S+ (\d+) packets)?", line):
                chain = head[1]
                if head[2]:
                    listed[table, chain, 0] = int(head[2])
            elif rule := re.match(r"(\d+) +(\d+) ", line):
                listed[table, chain, int(rule[1])] = int(rule[2])
        counted = network.counters("router", family)
        assert {p: n for p, (n, _) in counted.items() if p[0] == table} == listed


def test_two_networks_are_independent(make_network: Callable[[], Network]) -> None:
    first, second = make_network(), make_network()
    assert ping(first.client, at.SERVER4, 23) == Counts(23, 23)
    assert first.counters("router")["mangle", "FORWARD", 0][0] == 46
    assert second.counters("router")["mangle", "FORWARD", 0][0] == 0
    assert len({*first.inodes().values(), *second.inodes().values()}) == 6


def test_an_exception_in_the_with_block_leaves_nothing_behind(prefix: str) -> None:
    def work() -> None:
        with Network(prefix):
            assert _existing(prefix) == list(ROLES)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert _existing(prefix) == []
    assert not os.path.exists(f"/run/ipttrace/lab-{prefix}.lock")


def test_the_remains_of_a_killed_process_are_removed(prefix: str) -> None:
    argv = [sys.executable, "-c", HOLD, prefix]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        # GIVEN a network whose process is alive
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        # WHEN another process uses the same prefix
        # THEN the error names the owner
        with pytest.raises(NetworkError, match=f"in use by process {child.pid}"):
            Network.remove_stale(prefix)
        with pytest.raises(NetworkError, match="in use"), Network(prefix):
            pass
        assert _existing(prefix) == list(ROLES)
        # WHEN the process is killed
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert _existing(prefix) == list(ROLES)
    # THEN the next start removes the remains, and leaves nothing itself
    with Network(prefix) as again:
        assert ping(again.client, at.SERVER4, 3) == Counts(3, 3)
    assert _existing(prefix) == []
    assert Network.remove_stale(prefix) == []


@pytest.mark.parametrize("bad", ["", "../x", "a b", "-n", "x" * 33])
def test_a_bad_prefix_is_refused_in_one_line(bad: str) -> None:
    with pytest.raises(NetworkError, match="bad prefix") as caught:
        Network(bad)
    assert "\n" not in str(caught.value)


def test_targets_that_the_kernel_lacks_are_named(network: Network) -> None:
    rules = (
        "*filter\n:INPUT ACCEPT [0:0]\n:SOME - [0:0]\n"
        "-A INPUT -p tcp -m tcp --dport 1 -j SOME\n"
        "-A INPUT -p tcp -m tcp --dport 2 -j NOSUCH\n"
        '-A INPUT -m comment --comment "-j ALSONOT" -j SOME\n'
        "COMMIT\n"
    )
    # strict: a one-line error names the missing target
    with pytest.raises(NetworkError, match="has no NOSUCH target") as caught:
        load(network.client, "iptables-legacy-restore", rules)
    assert "\n" not in str(caught.value)
    # otherwise the other rules are loaded
    missing = load(network.client, "iptables-legacy-restore", rules, strict=False)
    assert missing == ["NOSUCH target (filter table)"]
    loaded = {p for p in network.counters("client") if p[0] == "filter"}
    assert ("filter", "INPUT", 2) in loaded
    assert ("filter", "INPUT", 3) not in loaded
    assert not any("TRIAL" in chain for _, chain, _ in loaded)


def test_counters_are_read_from_iptables_save() -> None:
    text = (
        "# Generated\n*filter\n:INPUT DROP [7:420]\n:WEB - [0:0]\n"
        '[3:180] -A INPUT -m comment --comment "[9:9] -A X" -j WEB\n'
        "[1:60] -A INPUT -j ACCEPT\n[2:120] -A WEB -j RETURN\nCOMMIT\n"
    )
    assert read_counters(text) == {
        ("filter", "INPUT", 0): (7, 420),
        ("filter", "INPUT", 1): (3, 180),
        ("filter", "INPUT", 2): (1, 60),
        ("filter", "WEB", 1): (2, 120),
    }
