# SPDX-License-Identifier: GPL-2.0-only
"""A row has the text of its rule as it was when the packet hit it, or none.

The truth is in the rules and packets: each generation of rules has comments of its own, and
the port of a packet names the generation during which it was sent.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace.session import Trace
from tests.vm.conftest import SHARED
from tests.vm.live import balanced
from tests.vm.plain import COMMANDS, LOOPBACK, Plain
from tests.vm.texts import flowing, generation_of, live, rules

pytestmark = SHARED

COUNT = 7


@pytest.mark.parametrize("family", [4, 6])
def test_each_row_has_the_text_of_the_rule_it_hit_although_rules_are_replaced(
    tmp_path: Path, family: int
) -> None:
    generations = 5
    with Plain() as plain:
        plain.load(rules("generation 0"), family)
        with live(tmp_path / "ready") as one:
            # WHEN packets are sent during several generations of rules, in each of which the
            # rule has another number
            for n in range(generations):
                if n:
                    plain.load(rules(f"generation {n}", n + 1), family)
                # On a slow host the rules may be read only after it is ready.
                one.wait_text(plain, family, n + 1, f'"generation {n}"')
                sent = traffic.udp(plain.name, LOOPBACK[family], 7000 + n, COUNT)
                assert sent.sent == COUNT
            one.finish()
        # THEN each row has the text and the number of its generation
        udp = [row for row in one.rows(plain) if row.proto == "UDP"]
        found = Counter((row.dport, row.rulenum, row.rule) for row in udp)
        assert found == {
            (7000 + n, n + 1, f'-p udp -m comment --comment "generation {n}" -j ACCEPT'): COUNT
            for n in range(generations)
        }
        # AND had them already when it came, from the first row on
        early = [row for row in one.early if row.netns == plain.inode and row.dport == 7000]
        assert {row.rule for row in early if row.hook == "INPUT"} == {
            '-p udp -m comment --comment "generation 0" -j ACCEPT'
        }
        # AND the trace has counters of the last generation
        counted = one.trace.rulesets.counters(plain.inode, family, "filter")
        assert counted is not None
        assert counted[0].chains["INPUT"].rules.shape == (generations, 2)


def test_no_text_is_wrong_while_a_table_is_replaced_fifty_times_under_traffic(
    tmp_path: Path,
) -> None:
    with Plain() as plain:
        plain.load(rules("generation 0"), 4)
        with live(tmp_path / "ready", netns=plain.name) as one:
            # WHEN rules are replaced all the time, and adjacent generations have the rule at
            # different numbers
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
        # THEN each text is of a generation whose rule had that number, at the end as well as
        # when the row came
        for row in [*rows, *(row for row in one.early if row.hook == "INPUT")]:
            if row.rule is not None and row.match == "rule":
                assert row.rulenum == 1 + generation_of(row) % 17, row
        # AND the first and the last rows have texts
        assert '"generation 0"' in (rows[0].rule or "")
        assert '"generation 50"' in (rows[-1].rule or "")
        # AND later rows have later rules
        known = sorted((row.ruleset, generation_of(row)) for row in rows if row.rule)
        assert [n for _, n in known] == sorted(n for _, n in known)


def test_a_chain_that_stays_keeps_its_texts_while_others_are_replaced_five_times_a_second(
    tmp_path: Path,
) -> None:
    def load(n: int) -> None:
        # Another number of rules in a chain before it, with other texts each time.
        others = "".join(f"-A often -p tcp --dport {n * 17 + k} -j DROP\n" for k in range(n % 5))
        text = f"*filter\n:often -\n:same -\n-A INPUT -j often\n-A INPUT -j same\n{others}"
        plain.load(f"{text}-A same -p udp -m comment --comment same -j ACCEPT\nCOMMIT\n", 4)

    with Plain() as plain:
        load(0)
        with live(tmp_path / "ready", netns=plain.name) as one, flowing(plain):
            one.wait(lambda: any(row.rule for row in one.rows(plain)), "the first texts")
            first = one.trace.store.end
            for n in range(1, 26):
                load(n)
                until = time.monotonic() + 0.2
                while (left := until - time.monotonic()) > 0:
                    one.agent.read(left)
                    one.feed()
            last = one.trace.store.end
            one.finish()
        rows = one.trace.store.rows(range(first, last))
        found = Counter(row.rule for row in rows if row.chain == "same" and row.match == "rule")
    # THEN no text is another rule's, and most rows have theirs
    assert found.keys() <= {None, "-p udp -m comment --comment same -j ACCEPT"}
    share = 1 - found[None] / found.total()
    print("share of rows with a text", share)
    assert share > 0.5


def test_a_change_in_one_namespace_leaves_the_texts_of_another(tmp_path: Path) -> None:
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
        # THEN all rows of the other have its text
        texts = Counter(row.rule for row in one.rows(second) if row.proto == "UDP")
        assert texts == {"-p udp -m comment --comment second -j ACCEPT": 3 * COUNT}
        texts = Counter(row.rule for row in one.rows(first) if row.proto == "UDP")
        assert texts == {
            f"-p udp -m comment --comment {text} -j ACCEPT": COUNT
            for text in ("first", '"first again"')
        }


def test_rows_of_a_namespace_made_while_tracing_have_texts(tmp_path: Path) -> None:
    with live(tmp_path / "ready") as one, Plain() as plain:
        # GIVEN a namespace that did not exist at the start, perhaps with the inode of one
        # that is gone
        plain.load(rules("made later"), 4)
        one.wait_text(plain, 4, 1, '"made later"')
        assert traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT).sent == COUNT
        one.wait(lambda: len(one.rows(plain)) >= COUNT, "its rows")
        one.finish()
        texts = {row.rule for row in one.rows(plain) if row.proto == "UDP"}
        assert texts == {'-p udp -m comment --comment "made later" -j ACCEPT'}


def test_each_of_two_thousand_rules_has_its_own_text(tmp_path: Path) -> None:
    ports = (1, 2, 23, 1024, 1999, 2000)
    lines = "".join(
        f'-A services -p udp --dport {n} -m comment --comment "service \\"{n}\\"" -j ACCEPT\n'
        for n in range(1, 2001)
    )
    with Plain() as plain, live(tmp_path / "ready", netns=plain.name) as one:
        # GIVEN a ruleset that is restored while tracing
        plain.load(f"*filter\n:INPUT DROP\n:services -\n-A INPUT -j services\n{lines}COMMIT\n", 4)
        one.wait_text(plain, 4, 1, "-j services")
        # WHEN some of its rules and its policy are hit
        for port in (*ports, 2001):
            traffic.udp(plain.name, LOOPBACK[4], port, COUNT)
        one.finish()
        udp = [row for row in one.rows(plain) if row.proto == "UDP"]
        found = Counter((row.chain, row.rulenum, row.match, row.rule) for row in udp)
        expected: Counter[tuple[str | None, int | None, str | None, str | None]]
        expected = Counter({("INPUT", 2, "policy", None): COUNT})
        for port in ports:
            text = f'--comment "service \\"{port}\\"" -j ACCEPT'
            expected[
                "services", port, "rule", f"-p udp -m udp --dport {port} -m comment {text}"
            ] = COUNT
        assert found == expected


def test_of_two_thousand_rules_even_the_first_row_has_its_text(tmp_path: Path) -> None:
    # GIVEN rules that nobody changes, and packets that already come when tracing starts
    with Plain() as plain:
        plain.load(rules("last of many", 2400), 4)
        with flowing(plain), live(tmp_path / "ready", netns=plain.name, engine="auto") as one:
            one.wait(lambda: len(one.early) >= 4 * COUNT, "the first rows")
            one.finish()
    # THEN the first row has its text at once, and so have all others
    hits = [row for row in one.early if row.hook == "INPUT" and row.proto == "UDP"]
    assert hits
    text = '-p udp -m comment --comment "last of many" -j ACCEPT'
    assert {(row.rulenum, row.match, row.rule) for row in hits} == {(2400, "rule", text)}


def test_a_recorded_stream_contains_the_texts(tmp_path: Path) -> None:
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
        # AND reading the rules has created no table
        names = plain.run("cat", "/proc/net/ip_tables_names").stdout.split()
        assert names == ["filter"]
        assert plain.run("cat", "/proc/net/ip6_tables_names").stdout.split() == []


def test_without_the_command_rows_have_no_texts_and_one_note_says_so(
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


def test_the_books_balance_in_a_stream_with_rules(tmp_path: Path) -> None:
    with Plain() as plain, live(tmp_path / "ready", netns=plain.name) as one:
        plain.load(rules("some"), 4)
        one.wait_text(plain, 4, 1, "some")
        traffic.udp(plain.name, LOOPBACK[4], 7000, COUNT)
        one.finish()
        balanced(one.trace.books)
        kinds = Counter(frame.kind for frame in one.agent.frames)
        assert kinds[Kind.RULES] >= 1
