# SPDX-License-Identifier: GPL-2.0-only
"""Changes of legacy tables are found by their bytes, soon and whatever the counters are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture import iptables_save
from ipttrace.capture.netlink.legacy import tables
from ipttrace.capture.netlink.legacy.tables import LegacyRules
from tests.netns.netlink_lab import tracing
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        if "legacy" not in one.run("iptables-legacy", "-V", check=False):
            pytest.skip("no iptables-legacy")
        yield one


def restore(one: RulesetNamespace, *rules: str) -> None:
    text = "".join(f"-A INPUT {rule}\n" for rule in rules)
    one.run("iptables-legacy-restore", input=f"*filter\n:user - [0:0]\n{text}COMMIT\n")


def test_a_change_is_found_and_counters_are_none(namespace: RulesetNamespace) -> None:
    restore(namespace, *(f"-p udp --dport {port} -j ACCEPT" for port in range(1, 301)))
    with namespace.enter():
        rules = LegacyRules()
        assert rules.check(force=True) == {4}
        assert rules.check(force=True) == set()
        namespace.run("ping", "-c", "3", "-i", "0.002", "-q", "127.0.0.1")
        # THEN packets that were counted are no change
        assert rules.check(force=True) == set()
        # AND the same number of rules of the same sizes in another order is one
        for at, rule in ((5, "-p udp --dport 9999 -j ACCEPT"), (1, "-p udp --dport 9998 -j DROP")):
            namespace.run("iptables-legacy", "-R", "INPUT", str(at), *rule.split())
            assert rules.check(force=True) == {4}
            assert (
                rule.replace("udp", "udp -m udp")
                == rules.tables[4, "filter"]["INPUT"].rules[at - 1]
            )
        # AND so are rules of other sizes, where the counters are elsewhere
        namespace.run("iptables-legacy", "-I", "INPUT", "-j", "user")
        assert rules.check(force=True) == {4}
        assert rules.check(force=True) == set()
        rules.close()


def test_the_cost_of_reading_rules_makes_no_row_wait(
    namespace: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(namespace, "-j ACCEPT")
    read = iptables_save.read

    def slowly(family: int) -> object:
        time.sleep(0.2)
        return read(family)

    monkeypatch.setattr(iptables_save, "read", slowly)
    with namespace.enter():
        rules = LegacyRules()
        assert rules.check(force=True) == {4}
        assert rules._due - time.monotonic() <= tables._LONGEST_REST
        rules.close()


def test_the_first_rows_of_ten_thousand_rules_have_texts(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN rules of both kinds that take a while to be read
    ports = range(1, 10_001)
    lines = "".join(f"-A INPUT -p udp -m udp --dport {port} -j ACCEPT\n" for port in ports)
    for kind, table in (("nft", "mangle"), ("legacy", "filter")):
        namespace.run(f"iptables-{kind}-restore", input=f"*{table}\n{lines}COMMIT\n")
    name = namespace.path.rsplit("/", 1)[1]
    with tracing(tmp_path, name, "udp dst port 9000") as tracer:
        # WHEN a packet comes as soon as the trace has begun
        code = "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9000))"
        namespace.run("python3", "-c", code)
        tracer.wait_until(lambda rows: len([row for row in rows if row["hook"] == "INPUT"]) == 2)
        rows = [row for row in tracer.finish() if row["hook"] == "INPUT"]
    assert {row["table"] for row in rows} == {"mangle", "filter"}
    assert {row["rule"] for row in rows} == {"-p udp -m udp --dport 9000 -j ACCEPT"}
