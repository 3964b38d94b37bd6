# SPDX-License-Identifier: GPL-2.0-only
"""Questions about a row's packet: what if it came now, and why it does not meet a rule."""

from __future__ import annotations

import threading

from ipttrace.trace.store import Store
from ipttrace.trace.tally.listing import RULE, RuleKey
from ipttrace.tui.app.answer import Answer
from ipttrace.tui.app.asking import Asking
from tests.tui.app.dialogs import notice_with
from tests.tui.harness import screen_text, until
from tests.tui.replayed import replayed, seq_of


class Rules:
    """In place of a copy of the rules: remembers what it was asked, and answers when told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str | None, str | None]] = []
        self.may_answer = threading.Event()
        self.error = ""

    def __call__(
        self, store: Store, seq: int, netns: str | None, rule: str | None, width: int
    ) -> tuple[list[str], str]:
        assert 40 <= width <= 80
        self.asked.append((seq, netns, rule))
        self.may_answer.wait()
        return ["before    after", "[red]rule 1  ≠  rule 2"], self.error


async def test_w_shows_both_ways_without_blocking_the_keys() -> None:
    async with replayed() as (app, pilot):
        rules = Rules()
        app.asking = Asking(app, rules)
        seq = seq_of(app, lambda row: row.verdict == "DROP")
        app.rows.move_to(seq)
        # WHEN the packet is asked about
        await pilot.press("W")
        await until(pilot, lambda: rules.asked)
        # THEN keys work while the copy is made, but a second question does not
        await pilot.press("W")
        await notice_with(app, pilot, "a question is being answered")
        rules.may_answer.set()
        await until(pilot, lambda: isinstance(app.screen, Answer))
        assert "[red]rule 1  ≠  rule 2" in "\n".join(screen_text(app))
        assert rules.asked == [(seq, app.feeds.netns_names()[0, app.store.row(seq).netns], None)]
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Answer))


async def test_y_asks_for_the_rule_in_the_rows_and_knows_it_among_the_rules() -> None:
    async with replayed() as (app, pilot):
        rules = Rules()
        rules.may_answer.set()
        app.asking = Asking(app, rules)
        app.rows.move_to(seq_of(app, lambda row: row.table == "filter" and row.hook == "FORWARD"))
        # in the detail: the rule is typed, behind the row's table and chain
        await pilot.press("enter", "tab", "Y")
        await until(pilot, lambda: app.prompt.display)
        await pilot.press("1", "enter")
        await until(pilot, lambda: isinstance(app.screen, Answer))
        row = app.rows.current
        assert row is not None
        assert rules.asked[-1][2] == f"filter {row.chain} 1"
        await pilot.press("escape")
        # among the rules: the one under the cursor
        await pilot.press("2")
        await until(pilot, lambda: app.rules.picked is not None)
        key = app.rules.picked
        for _ in range(50):  # a rule, not a table, a chain or its policy
            if isinstance(key, RuleKey) and key.kind == RULE:
                break
            await pilot.press("down")
            key = app.rules.picked
        assert isinstance(key, RuleKey)
        await pilot.press("Y")
        await until(pilot, lambda: len(rules.asked) == 2)
        assert rules.asked[-1][2] == f"legacy {key.table} {key.chain} {key.number}"


async def test_an_answer_that_cannot_be_had_is_one_line() -> None:
    async with replayed() as (app, pilot):
        # a recording
        app.rows.move_to(0)
        await pilot.press("W")
        await notice_with(
            app, pilot, "not a live trace of this host: ipttrace whatif 'from row 1 of FILE'"
        )
        # a host that refuses
        rules = Rules()
        rules.may_answer.set()
        rules.error = "only root can read this host's rules: run with sudo"
        app.asking = Asking(app, rules)
        await pilot.press("W")
        await notice_with(app, pilot, rules.error)
        assert not app.asking.running
