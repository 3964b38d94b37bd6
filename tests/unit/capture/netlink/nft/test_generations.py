# SPDX-License-Identifier: GPL-2.0-only
"""Rows keep their rule numbers while rules change faster than they can be listed."""

from __future__ import annotations

from ipttrace.capture.netlink.events import ChainKey
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.netlink.nft.generations import Generations
from ipttrace.netfilter import ACCEPT, DROP, STOLEN

KEY = ChainKey(2, b"t", b"c")


def snapshot(
    genid: int, *handles: int, table: int = 1, contents: int = 5, verdict: int | None = None
) -> Snapshot:
    chain = ChainInfo(None, None, "", None, (), list(handles))
    chain.contents.extend([contents] * len(handles))
    chain.verdicts.extend([verdict] * len(handles))
    return Snapshot(genid, {(2, "t"): TableInfo(table, 0, None)}, {(2, "t", "c"): chain})


def test_a_snapshot_of_a_generation_that_is_not_announced_yet_is_used() -> None:
    # GIVEN rules that change from generation 10 to 11, and to 12 before they are listed
    found = Generations(snapshot(10, 1, 2), 1)
    found.change(11, 5, 2, snapshot(12, 1, 3))
    # THEN a rule that was there before and after has its number, as in generation 10
    location = found._search(11, 0, KEY, 1)
    assert (location.rulenum, location.ruleset) == (1, 1)
    # AND neither one that went meanwhile nor one that came has a generation
    assert found._search(11, 0, KEY, 2).ruleset == 0
    assert found._search(11, 0, KEY, 3).ruleset == 0
    # AND once generation 12 is announced, its rules are known
    found.change(12, 6, 3, None)
    location = found._search(12, 0, KEY, 3)
    assert (location.rulenum, location.ruleset) == (2, 3)


def test_a_table_that_was_made_again_in_between_gives_no_generation() -> None:
    found = Generations(snapshot(10, 1), 1)
    found.change(11, 5, 2, snapshot(12, 1, table=2))
    assert found._search(11, 0, KEY, 1).ruleset == 0


def test_a_rule_that_was_replaced_under_its_handle_is_neither() -> None:
    # GIVEN `iptables -R`, which keeps the handle
    found = Generations(snapshot(10, 1), 1)
    found.change(11, 5, 2, snapshot(12, 1, contents=6))
    assert found._search(11, 0, KEY, 1) == (1, 0xFF, 0, 0, 0)
    # AND in the moment before it is announced
    found.change(12, 6, 3, None)
    assert found._search(10, 12, KEY, 1).ruleset == 0


def test_a_rule_that_was_replaced_under_its_handle_is_known_by_its_verdict() -> None:
    # GIVEN `iptables -R` of a rule that accepts by one that drops
    found = Generations(snapshot(10, 1, verdict=ACCEPT), 1)
    found.change(11, 6, 2, snapshot(11, 1, contents=6, verdict=DROP))
    # THEN in the moment before it is announced each verdict is of one of them
    assert found._search(10, 11, KEY, 1, ACCEPT).ruleset == 1
    assert found._search(10, 11, KEY, 1, DROP).ruleset == 2
    # AND another verdict is of neither
    assert found._search(10, 11, KEY, 1, STOLEN).ruleset == 0


def test_a_replaced_rule_that_may_give_any_verdict_leaves_its_own_verdict_open() -> None:
    found = Generations(snapshot(10, 1, verdict=ACCEPT), 1)
    found.change(11, 6, 2, snapshot(11, 1, contents=6))
    assert found._search(10, 11, KEY, 1, ACCEPT).ruleset == 0
    assert found._search(10, 11, KEY, 1, DROP).ruleset == 2


def test_a_rule_of_a_table_that_was_made_again_is_found_by_the_tables_handle() -> None:
    # GIVEN a table that is made again, whose second rule has the handle of another one before
    found = Generations(snapshot(10, 1, 3, table=7), 1)
    found.change(11, 5, 2, snapshot(11, 3, table=8))
    # THEN a packet that meets the new one's rules is located there
    assert found._search(11, 0, KEY, 3, 0, 8) == (1, 0xFF, 0, 2, 0)
    # AND one that still meets the old one's is located there, though it began later
    location = found._search(11, 0, KEY, 3, 0, 7)
    assert (location.rulenum, location.ruleset) == (2, 0)
    # AND one of neither has no number
    assert found._search(11, 0, KEY, 3, 0, 6).rulenum == 0


def test_a_run_during_which_rules_changed_twice_has_a_number_only_if_it_was_the_same() -> None:
    # GIVEN rules that are replaced twice, the first of them only once
    found = Generations(snapshot(10, 1, 2), 1)
    found.change(11, 5, 2, None)
    found.change(12, 6, 3, snapshot(12, 1, 3))
    # THEN the first may be told, and of others it is not known which ruleset it was
    assert found._search(10, 12, KEY, 1) == (1, 0xFF, 0, 1, 0)
    for handle in (2, 3):
        location = found._search(10, 12, KEY, handle)
        assert (location.rulenum, location.ruleset) == (0, 0)


def test_rules_that_are_not_read_yet_give_no_number_to_packets() -> None:
    # GIVEN a generation that the kernel has begun, and not yet announced
    found = Generations(snapshot(10, 1), 1)
    # THEN a packet that met its rules has no number, whatever its handle was before
    assert found._search(11, 0, KEY, 1).rulenum == 0
    assert found._search(10, 11, KEY, 1).rulenum == 0
    # AND where the kernel does not tell a generation, the newest is taken
    assert found._search(0, 0, KEY, 1).rulenum == 1
