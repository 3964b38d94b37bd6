# SPDX-License-Identifier: GPL-2.0-only
"""The text of a row's rule is that of the rule as it was when the packet hit it, or none.

The truth is in the rules themselves: every generation of them has comments of its own,
and packets whose port says during which they were sent.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from tests.vm.plain import COMMANDS, LOOPBACK, Plain
from tests.vm.texts import flowing, generation_of, live, rules

COUNT = 7


@pytest.mark.parametrize("family", [4, 6])
def test_rules_replaced_between_packets_give_each_row_the_text_that_it_met(
    tmp_path: Path, family: int
) -> None:
    generations = 5
    with Plain() as plain:
        plain.load(rules("generation 0"), family)
        with live(tmp_path / "ready") as one:
            # WHEN some packets are sent in each of several generations of the rules, whose
            # rule stands at another number each time
            for n in range(generations):
                if n:
                    plain.load(rules(f"generation {n}", n + 1), family)
                # On a host that is slow or busy the first look may end after it is ready.
                one.wait_text(plain, family, n + 1, f'"generation {n}"')
                sent = traffic.udp(plain.name, LOOPBACK[family], 7000 + n, COUNT)
                assert sent.sent == COUNT
            one.finish()
        # THEN each row has the text of its time, as iptables says it, at its number
        udp = [row for row in one.rows(plain) if row.proto == "UDP"]
        found = Counter((row.dport, row.rulenum, row.rule) for row in udp)
        assert found == {
            (7000 + n, n + 1, f'-p udp -m comment --comment "generation {n}" -j ACCEPT'): COUNT
            for n in range(generations)
        }
        # AND so it was from the first row on, before the rules had ever changed
        early = [row for row in one.early if row.netns == plain.inode and row.dport == 7000]
        assert {row.rule for row in early if row.hook == "INPUT"} == {
            '-p udp -m comment --comment "generation 0" -j ACCEPT'
        }
        # AND what was counted is there, and in it what was sent last
        counted = one.trace.rulesets.counters(plain.inode, family, "filter")
        assert counted is not None
        assert counted[0].chains["INPUT"].rules.shape == (generations, 2)


def test_a_table_replaced_fifty_times_while_traffic_flows_never_gives_a_wrong_text(
    tmp_path: Path,
) -> None:
    with Plain() as plain:
        plain.load(rules("generation 0"), 4)
        with live(tmp_path / "ready", netns=plain.name) as one:
            # WHEN packets meet rules that are replaced all the time, each of whose
            # generations has its rule at a number that no neighbour has
            one.wait_text(plain, 4, 1, '"generation 0"')
            with flowing(plain):
                one.wait(lambda: one.trace.store.end > 100, "the traffic")
                for n in range(1, 51):
                    plain.load(rules(f"generation {n}", 1 + n % 17), 4)
                    one.agent.read(0.0)
                    one.feed()
                one.wait_text(plain, 4, 1 + 50 % 17, '"generation 50"')
                last = one.trace.store.end
                one.wait(lambda: one.trace.store.end > last + 100, "more of the traffic")
            one.finish()
        rows = [row for row in one.rows(plain) if row.match == "rule" and row.proto == "UDP"]
        # THEN a text that is there is of a generation that had it at that number: then, and
        # when the row came
        for row in [*rows, *(row for row in one.early if row.hook == "INPUT")]:
            if row.rule is not None and row.match == "rule":
                assert row.rulenum == 1 + generation_of(row) % 17, row
        # AND texts are there before and after
        assert '"generation 0"' in (rows[0].rule or "")
        assert '"generation 50"' in (rows[-1].rule or "")
        # AND later rows are of later rules
        known = sorted((row.ruleset, generation_of(row)) for row in rows if row.rule)
        assert [n for _, n in known] == sorted(n for _, n in known)


def test_a_change_in_one_namespace_takes_nothing_from_another(tmp_path: Path) -> None:
    with Plain("ipt-one") as first, Plain("ipt-two") as second:
        first.load(rules("first"), 4)
        second.load(rules("second"), 4)
        with live(tmp_path / "ready") as one:
            one.wait_text(first, 4, 1, "first")
            one.wait_text(second, 4, 1, "second")
            # WHEN the rules of one are replaced, between packets in both
            for name, number in (("first again", 2), ("and again", 3)):
                traffic.udp(first.name, LOOPBACK[4], 7000, COUNT)
                traffic.udp(second.name, LOOPBACK[4], 7000, COUNT)
                first.load(rules(name, number), 4)
                one.wait_text(first, 4, number, f'"{name}"')
            traffic.udp(second.name, LOOPBACK[4], 7000, COUNT)
            one.finish()
        # THEN the rows of the other have its text all the time
        texts = Counter(row.rule for row in one.rows(second) if row.proto == "UDP")
        assert texts == {"-p udp -m comment --comment second -j ACCEPT": 3 * COUNT}
        texts = Counter(row.rule for row in one.rows(first) if row.proto == "UDP")
        assert texts == {
            f"-p udp -m comment --comment {text} -j ACCEPT": COUNT
            for text in ("first", '"first again"')
        }


def test_a_namespace_made_while_it_traces_gets_its_texts(tmp_path: Path) -> None:
    with live(tmp_path / "ready") as one, Plain() as plain:
        # GIVEN a namespace that was not there at the beginning, perhaps with the number
        # of one that has gone
        plain.load(rules("made later"), 4)
        one.wait_text(plain, 4, 1, '"made later"')
        assert traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT).sent == COUNT
        one.wait(lambda: len(one.rows(plain)) >= COUNT, "its rows")
        one.finish()
        texts = {row.rule for row in one.rows(plain) if row.proto == "UDP"}
        assert texts == {'-p udp -m comment --comment "made later" -j ACCEPT'}


def test_two_thousand_rules_have_their_texts_by_their_numbers(tmp_path: Path) -> None:
    ports = (1, 2, 23, 1024, 1999, 2000)
    lines = "".join(
        f'-A services -p udp --dport {n} -m comment --comment "service \\"{n}\\"" -j ACCEPT\n'
        for n in range(1, 2001)
    )
    with Plain() as plain, live(tmp_path / "ready", netns=plain.name) as one:
        # GIVEN a ruleset that is restored while it traces
        plain.load(f"*filter\n:INPUT DROP\n:services -\n-A INPUT -j services\n{lines}COMMIT\n", 4)
        one.wait_text(plain, 4, 1, "-j services")
        # WHEN some of its rules are hit, and its policy
        for port in (*ports, 2001):
            traffic.udp(plain.name, LOOPBACK[4], port, COUNT)
        one.finish()
        udp = [row for row in one.rows(plain) if row.proto == "UDP"]
        found = Counter((row.chain, row.rulenum, row.match, row.rule) for row in udp)
        expected = Counter({("INPUT", 2, "policy", None): COUNT})
        for port in ports:
            text = f'--comment "service \\"{port}\\"" -j ACCEPT'
            expected[
                "services", port, "rule", f"-p udp -m udp --dport {port} -m comment {text}"
            ] = COUNT
        assert found == expected


def test_a_recorded_stream_has_the_texts_in_it(tmp_path: Path) -> None:
    with Plain() as plain:
        plain.load(rules("kept"), 4)
        with live(tmp_path / "ready") as one:
            traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT)
            one.finish()
        again = Trace()
        for frame in one.agent.frames:
            again.feed(Frame(frame.kind, frame.payload, frame.dtypes))
        store = again.store
        rows = [row for row in store.rows(range(store.first, store.end)) if row.dport == 7000]
        assert {row.rule for row in rows if row.hook == "INPUT" and row.netns == plain.inode} == {
            "-p udp -m comment --comment kept -j ACCEPT"
        }
        # AND nobody made a table that was not there
        names = plain.run("cat", "/proc/net/ip_tables_names").stdout.split()
        assert names == ["filter"]
        assert plain.run("cat", "/proc/net/ip6_tables_names").stdout.split() == []


def test_without_the_command_rows_come_without_texts_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipttrace.capture import iptables_save as ruleset_save

    monkeypatch.setattr(ruleset_save, "command", lambda family: None)
    with Plain() as plain:
        plain.load(rules("never seen"), 4)
        with live(tmp_path / "ready") as one:
            traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT)
            one.finish()
        assert {row.rule for row in one.rows(plain)} == {None}
        notes = [text for text in one.agent.notes() if "is missing" in text]
        assert sum(COMMANDS[4] in text for text in notes) == 1


def test_books_and_rules_share_a_stream(tmp_path: Path) -> None:
    """No rule's frame gets between a reader and the balance of the books."""
    with Plain() as plain, live(tmp_path / "ready", netns=plain.name) as one:
        plain.load(rules("some"), 4)
        one.wait_text(plain, 4, 1, "some")
        traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT)
        trace = one.finish()
        books = trace.books
        assert sum(books["due"]) == sum(books["delivered"]) + sum(books["lost"]) + books["missed"]
        kinds = Counter(frame.kind for frame in one.agent.frames)
        assert kinds[Kind.RULES] >= 1
