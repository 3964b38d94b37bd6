# SPDX-License-Identifier: GPL-2.0-only
"""A legacy rule has a text that was printed of the same bytes, or none."""

from __future__ import annotations

from ipttrace.capture import iptables_save
from ipttrace.capture.legacy_texts import LegacyTexts, common
from ipttrace.capture.xtables import Chain, Chains

PLAIN, OTHER, SET = 11, 12, 13


def chains(*contents: int) -> Chains:
    return {"INPUT": Chain("ACCEPT", contents, frozenset({SET} & set(contents)))}


def printed(*rules: str) -> iptables_save.Table:
    return {"INPUT": iptables_save.Chain("ACCEPT", (0, 0), list(rules))}


def known(texts: LegacyTexts, *contents: int) -> list[str | None]:
    chain = texts.table(chains(*contents))["INPUT"]
    return [None if number in chain.unknown else text for number, text in enumerate(chain.rules, 1)]


def test_a_rule_has_its_text_wherever_it_comes_again() -> None:
    texts = LegacyTexts()
    assert texts.learn(chains(PLAIN, SET), printed("-j ACCEPT", "-m set"))
    assert not texts.learn(chains(PLAIN, SET), printed("-j ACCEPT", "-m set"))
    texts.replaced([chains(OTHER)])
    assert known(texts, OTHER, PLAIN) == [None, "-j ACCEPT"]


def test_a_rule_with_a_set_that_was_gone_may_have_another_set() -> None:
    texts = LegacyTexts()
    texts.learn(chains(PLAIN, SET), printed("-j ACCEPT", "-m set"))
    # GIVEN a table in which the rule has stayed
    texts.replaced([chains(SET, OTHER)])
    assert known(texts, SET) == ["-m set"]
    # WHEN no table has it
    texts.replaced([chains(PLAIN)])
    assert known(texts, SET, PLAIN) == [None, "-j ACCEPT"]
    # OR tables were replaced that nobody has seen
    texts.learn(chains(PLAIN, SET), printed("-j ACCEPT", "-m set"))
    texts.forget_sets()
    assert known(texts, SET, PLAIN) == [None, "-j ACCEPT"]


def test_a_chain_that_was_printed_with_another_number_of_rules_teaches_nothing() -> None:
    texts = LegacyTexts()
    assert not texts.learn(chains(PLAIN, OTHER), printed("-j ACCEPT"))
    assert known(texts, PLAIN) == [None]


def test_only_chains_that_never_differ_are_common() -> None:
    one = {**chains(PLAIN), "user": Chain(None, (OTHER,))}
    other = {**chains(PLAIN), "user": Chain(None, (PLAIN,))}
    assert list(common(one, other, one)) == ["INPUT"]
    assert list(common(one, one)) == ["INPUT", "user"]
