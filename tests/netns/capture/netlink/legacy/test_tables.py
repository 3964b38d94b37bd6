# SPDX-License-Identifier: GPL-2.0-only
"""Changes of legacy tables are found by their bytes, soon and whatever the counters are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from ipttrace.capture import iptables_save
from ipttrace.capture.netlink.legacy import rules as legacy_rules
from ipttrace.capture.netlink.legacy.rules import LegacyRules
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
        assert rules.check(force=True)
        assert rules.check(force=True) == []
        namespace.run("ping", "-c", "3", "-i", "0.002", "-q", "127.0.0.1")
        # THEN packets that were counted are no change
        assert rules.check(force=True) == []
        # AND the same number of rules of the same sizes in another order is one
        for at, rule in ((5, "-p udp --dport 9999 -j ACCEPT"), (1, "-p udp --dport 9998 -j DROP")):
            namespace.run("iptables-legacy", "-R", "INPUT", str(at), *rule.split())
            assert rules.check(force=True)
            assert (
                rule.replace("udp", "udp -m udp")
                == rules.texts(rules.tables, rules.epochs)[4, "filter"]["INPUT"].rules[at - 1]
            )
        # AND so are rules of other sizes, where the counters are elsewhere
        namespace.run("iptables-legacy", "-I", "INPUT", "-j", "user")
        assert rules.check(force=True)
        assert rules.check(force=True) == []
        rules.close()


def test_a_table_that_was_another_one_while_it_was_printed_has_no_text_of_it(
    namespace: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ("-p udp -m udp --dport 1 -j ACCEPT", "-p udp -m udp --dport 2 -j ACCEPT")
    restore(namespace, one)
    read = iptables_save.read_table

    def meanwhile(family: int, table: str) -> object:
        restore(namespace, other)
        printed = read(family, table)
        restore(namespace, one)
        return printed

    with namespace.enter(), closing(LegacyRules()) as rules:
        # WHEN the table is replaced, and replaced back, each time that it is printed
        with monkeypatch.context() as patch:
            patch.setattr(iptables_save, "read_table", meanwhile)
            for _ in range(3):
                assert rules.check(force=True) is not None
                chain = rules.texts(rules.tables, rules.epochs)[4, "filter"]["INPUT"]
                assert (chain.rules, chain.unknown) == ([""], [1])
        # THEN its text is known once it stays
        unknown = [1]
        while unknown:
            rules.check(force=True)
            chain = rules.texts(rules.tables, rules.epochs)[4, "filter"]["INPUT"]
            unknown = chain.unknown
        assert chain.rules == [one]


def test_a_table_that_was_another_one_between_two_looks_is_unknown_for_that_time(
    namespace: RulesetNamespace,
) -> None:
    restore(namespace, "-j ACCEPT")
    with namespace.enter(), closing(LegacyRules()) as rules:
        rules.check(force=True)
        restore(namespace, "-j DROP")
        restore(namespace, "-j ACCEPT")
        stretches = rules.check(force=True)
        assert stretches is not None
        between, now = stretches
    # THEN neither texts nor verdicts of that time are known, and those of now are
    assert between.known == {}
    assert {} in between.seen
    assert list(now.known) == [(4, "filter")]


def test_the_cost_of_reading_rules_makes_no_row_wait(
    namespace: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore(namespace, "-j ACCEPT")
    read = iptables_save.read_table

    def slowly(family: int, table: str) -> object:
        time.sleep(0.2)
        return read(family, table)

    monkeypatch.setattr(iptables_save, "read_table", slowly)
    with namespace.enter():
        rules = LegacyRules()
        assert rules.check(force=True)
        assert rules._due - time.monotonic() <= legacy_rules._LONGEST_REST
        rules.close()


def test_a_chain_that_stayed_while_another_was_replaced_has_the_texts_printed_meanwhile(
    namespace: RulesetNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = "-p udp -m udp --dport 7 -j ACCEPT"

    def load(number: int) -> None:
        namespace.run(
            "iptables-legacy-restore",
            input=f"*filter\n:same - [0:0]\n-A same {stays}\n"
            f"-A INPUT -p udp --dport {number} -j ACCEPT\nCOMMIT\n",
        )

    load(1)
    read, numbers = iptables_save.read_table, count(2)

    def meanwhile(family: int, table: str) -> object:
        load(next(numbers))
        return read(family, table)

    monkeypatch.setattr(iptables_save, "read_table", meanwhile)
    with namespace.enter(), closing(LegacyRules()) as rules:
        # WHEN a rule of the table is replaced each time that it is printed
        for _ in range(20):
            rules.check(force=True)
            chains = rules.texts(rules.tables, rules.epochs)[4, "filter"]
            assert chains["INPUT"].unknown == [1]
            if not chains["same"].unknown:
                break  # at once, unless others of this host took the lock as well
    # THEN the chain that stayed has its text
    assert chains["same"].rules == [stays]


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
