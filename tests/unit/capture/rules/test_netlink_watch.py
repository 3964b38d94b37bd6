# SPDX-License-Identifier: GPL-2.0-only
"""Rules that are replaced faster than they can be read keep their texts, never another's."""

from __future__ import annotations

import json
import queue

from ipttrace.capture.legacy_texts import TextChain
from ipttrace.capture.netlink.changes import LegacyChange, NftChange, RuleChange
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.rules.netlink_watch import NetlinkRules
from ipttrace.capture.rules.nft_texts import ChainText, TableText
from ipttrace.stream.frames import Kind
from ipttrace.trace.rules.families import FAMILIES
from ipttrace.trace.rules.rulesets import Rulesets

INODE = 7
IP = 2  # NFPROTO_IPV4
TABLE = (IP, "t")


def snapshot(genid: int, table: int = 1, content: int = 0, **chains: list[int]) -> Snapshot:
    """A ruleset with one table, its handle `table`; its chains' rules by handle.

    `content`: rules with the same handle and content are the same.
    """
    infos = {
        (*TABLE, name): ChainInfo(
            None, None, "", None, (), handles,
            handle=ord(name[0]), contents=[content + one for one in handles],
        )
        for name, handles in chains.items()
    }  # fmt: skip
    return Snapshot(genid, {TABLE: TableInfo(table, 0, None)}, infos)


def texts(**chains: list[str]) -> dict[tuple[int, str], TableText]:
    """What the commands print."""
    found = {name: ChainText(None, list(one), [None] * len(one)) for name, one in chains.items()}
    return {TABLE: TableText("nft", found)}


class Host:
    """The engine on one side, a reader of the stream on the other."""

    def __init__(self) -> None:
        self.changes: queue.Queue[RuleChange] = queue.Queue()
        self.rules = NetlinkRules(self.changes)
        self.read = Rulesets()
        self.generation = 0

    def change(self, new: Snapshot | None) -> None:
        self.generation += 1
        self.changes.put(NftChange("/x", INODE, new, self.generation))
        self.report()

    def learn(self, of: Snapshot, printed: dict[tuple[int, str], TableText]) -> None:
        """The watch has read the chains in `printed`, which are as in the snapshot `of`."""
        shared = self.rules._shared
        with shared.lock:
            shared.known[INODE].learn(of, printed)
            shared.read_at[INODE] = 5
            shared.due.clear()
            shared.tried.add(INODE)
        self.report()

    def report(self) -> None:
        for kind, frame in self.rules.report():
            if kind == Kind.RULES:
                self.read.feed(json.loads(json.dumps(frame)))

    def text(self, chain: str, rulenum: int, generation: int = 0) -> str | None:
        generation = generation or self.generation
        return self.read.text(INODE, FAMILIES["ip"], "t", chain, rulenum, generation)


def test_the_unchanged_rules_have_texts_at_once_when_others_are_replaced() -> None:
    host = Host()
    first = snapshot(1, services=[1, 2], forward=[3])
    host.change(first)
    assert not host.rules.first.is_set()
    host.learn(first, texts(services=["-j A", "-j B"], forward=["-j C"]))
    assert host.rules.first.is_set()
    # WHEN one chain is replaced, and a rule inserted before the other's, again and again
    for generation in range(2, 9):
        host.change(snapshot(generation, services=[10 * generation, 1, 2], forward=[99]))
        # THEN each rule that stayed has its own text, and the others none
        assert [host.text("services", number) for number in range(1, 5)] == [
            None, "-j A", "-j B", None,
        ]  # fmt: skip
        assert host.text("forward", 1) is None
        # AND each has its handle, as it was then
        rule = INODE, FAMILIES["ip"], "t", "services", 2
        assert host.read.handle(*rule, host.generation) == 1
        assert host.read.handle(*rule, 1) == 2
        assert host.read.handle(*rule[:-1], 4, host.generation) is None
    # AND the earlier generations keep theirs
    assert host.text("services", 1, 1) == "-j A"
    assert host.text("forward", 1, 1) == "-j C"


def test_texts_that_were_read_while_rules_changed_are_of_the_rules_that_stayed() -> None:
    host = Host()
    first = snapshot(1, services=[1, 2], forward=[3])
    host.change(first)
    # WHEN the rules change during the read
    host.change(snapshot(2, services=[2], forward=[4]))
    host.learn(first, texts(services=["-j A", "-j B"], forward=["-j C"]))
    assert host.text("services", 1) == "-j B"
    assert host.text("forward", 1) is None


def test_a_table_that_was_made_again_has_the_texts_of_equal_rules_only() -> None:
    host = Host()
    first = snapshot(1, services=[1])
    host.change(first)
    host.learn(first, texts(services=["-j A"]))
    # WHEN the table is made again, so that handles begin anew, with another rule
    host.change(snapshot(2, table=2, content=5, services=[1]))
    # THEN that has not its text, and once it is as it was it has
    assert host.text("services", 1) is None
    host.change(snapshot(3, table=3, services=[1]))
    assert host.text("services", 1) == "-j A"


def test_a_chain_that_is_flushed_and_filled_again_keeps_its_texts() -> None:
    host = Host()
    first = snapshot(1, services=[1, 2])
    host.change(first)
    host.learn(first, texts(services=["-j A", "-j B"]))
    # WHEN it is flushed, and equal rules come back in another order, under new handles
    host.change(snapshot(2, services=[]))
    again = snapshot(3, services=[12, 11, 13])
    again.chains[*TABLE, "services"].contents[:] = [2, 1, 3]
    host.change(again)
    # THEN each has its text, and the new one has none
    assert [host.text("services", number) for number in (1, 2, 3)] == ["-j B", "-j A", None]


def test_a_rule_that_was_replaced_under_its_handle_has_not_the_text_of_before() -> None:
    host = Host()
    first = snapshot(1, services=[1])
    host.change(first)
    host.learn(first, texts(services=["-j A"]))
    # WHEN `iptables -R` replaces the rule, which keeps its handle
    second = snapshot(2, content=5, services=[1])
    host.change(second)
    # THEN neither has the other's text, before and after the new one is read
    assert (host.text("services", 1, 1), host.text("services", 1, 2)) == ("-j A", None)
    host.learn(second, texts(services=["-j B"]))
    assert (host.text("services", 1, 1), host.text("services", 1, 2)) == ("-j A", "-j B")


def test_a_chain_with_a_new_name_leaves_no_text_that_has_the_old_one() -> None:
    host = Host()
    first = snapshot(1, services=[1], old=[2])
    host.change(first)
    host.learn(first, texts(services=["jump old"], old=["accept"]))
    renamed = snapshot(2, services=[1])
    renamed.chains[*TABLE, "new"] = first.chains[*TABLE, "old"]
    host.change(renamed)
    assert host.text("services", 1) is None


def test_a_rule_without_words_has_an_empty_text_and_an_unknown_one_none() -> None:
    host = Host()
    first = snapshot(1, services=[1])
    host.change(first)
    host.learn(first, texts(services=[""]))
    host.change(snapshot(2, services=[1, 2]))
    assert (host.text("services", 1), host.text("services", 2)) == ("", None)


def test_a_namespace_that_is_gone_has_nothing_left_to_read() -> None:
    host = Host()
    host.change(snapshot(1, services=[1]))
    host.change(None)
    assert host.rules.settled(0)
    assert host.read.namespaces() == []


def test_legacy_tables_that_cannot_be_read_any_more_have_no_texts_of_before() -> None:
    host = Host()
    table = {"INPUT": TextChain("DROP", ["-j ACCEPT"])}
    host.changes.put(LegacyChange("/x", INODE, {(4, "filter"): table}, 1))
    host.changes.put(LegacyChange("/x", INODE, {}, 2))
    host.report()
    found = [host.read.text(INODE, 4, "filter", "INPUT", 1, number) for number in (1, 2)]
    assert found == ["-j ACCEPT", None]
