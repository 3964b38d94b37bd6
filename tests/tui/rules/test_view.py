# SPDX-License-Identifier: GPL-2.0-only
"""The rules view and its keys."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from textual.widgets import ContentSwitcher

from ipttrace.trace.tally.listing import RuleKey
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.widgets.ledger import Ledger
from tests.data import streams
from tests.paths import LAB
from tests.tui.tallied import NETNS, Tallied, line_with, lines, on_screen, picked

CHAINS = {
    "FORWARD": {
        "policy": "DROP",
        "rules": ["-i eth0 -j ACCEPT", "-p udp -j DROP", "-p tcp -j WEB", "-j ACCEPT", "-j LOG"],
    },
    "WEB": {"policy": None, "rules": ["--dport 80 -j ACCEPT"]},
}


def hit(count: int = 280, generation: int = 1, start: int = 0) -> bytes:
    """Rows that hit the rules of this generation."""
    entry, rule, end = streams.records(count, start)
    entry["ruleset"] = generation
    return streams.frames(entry, rule, end)


def lab(rules: bool = True) -> Tallied:
    tallied = Tallied()
    if rules:
        tallied.rules(CHAINS)
    tallied.feed(hit())
    return tallied


async def test_a_rule_is_listed_in_its_chain_with_hits_share_of_drops_and_text() -> None:
    # GIVEN 70 packets in FORWARD, five rules hit in turn, each seventh packet dropped
    async with on_screen(RulesView(), lab(), (120, 40)) as (app, _):
        text = "\n".join(lines(app))
        assert "Chain FORWARD (policy DROP)" in text
        assert "Chain WEB (1 reference)" in text
        assert text.index("-i eth0 -j ACCEPT") < text.index("-p udp -j DROP")
        rule = line_with(app, "-p udp -j DROP").split()
        assert rule[0] == "2"
        assert "14" in rule
        assert "20%" in rule
        # THEN a rule without hits shows 0
        assert line_with(app, "--dport 80").split()[:2] == ["1", "0"]
        # AND tables whose rules are unknown show hits by number
        assert "IPv4 raw  rules unknown: hits by number" in text


async def test_heat_is_also_shown_as_a_bar() -> None:
    async with on_screen(RulesView(), lab(), (120, 40)) as (app, _):
        assert "█" in line_with(app, "-p udp -j DROP")
        assert "█" not in line_with(app, "--dport 80")


async def test_enter_shows_the_rows_that_hit_the_rule() -> None:
    tallied = lab()
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, pilot):
        while "-p udp -j DROP" not in picked(app):
            await pilot.press("down")
        await pilot.press("enter")
        (asked,) = app.asked
        assert asked.words == "rule filter FORWARD:2"
        assert tallied.matching(asked.query) == 14
        assert tallied.matching(f"({asked.query}) and path!=FORWARD:2") == 0


async def test_enter_on_a_chain_shows_the_rows_that_passed_it() -> None:
    tallied = lab()
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, pilot):
        while "Chain WEB" not in picked(app):
            await pilot.press("down")
        await pilot.press("enter")
        while "Chain FORWARD" not in picked(app):
            await pilot.press("up")
        await pilot.press("enter")
        assert [asked.words for asked in app.asked] == ["chain filter WEB", "policy filter FORWARD"]
        assert [tallied.matching(asked.query) for asked in app.asked] == [0, 0]


async def test_enter_selects_as_many_rows_as_each_line_has_hits() -> None:
    # GIVEN a recording without rules, in which no packet hits a rule twice
    tallied = Tallied()
    tallied.replay(LAB)
    view = RulesView()
    async with on_screen(view, tallied, (120, 400)) as (app, pilot):
        for _ in view._order:
            assert view._listing is not None
            for key, of in view._listing.figures.items():
                view._line = view._at[key]
                view.action_filter()
                await pilot.pause()
                assert tallied.matching(app.asked[-1].query) == of.hits, app.asked[-1].query
            await pilot.press("]")
        assert len(app.asked) > 80


async def test_brackets_cycle_through_the_namespaces_starting_at_the_busiest() -> None:
    tallied = Tallied()
    tallied.replay(LAB)
    async with on_screen(RulesView(), tallied) as (app, pilot):
        assert "ipt-router" in lines(app)[0]
        seen = set()
        for _ in range(3):
            await pilot.press("right_square_bracket")
            seen.add(lines(app)[0].split()[0])
        assert seen == {"ipt-client", "ipt-router", "ipt-server"}
        await pilot.press("left_square_bracket")
        assert "ipt-client" in lines(app)[0]


async def test_s_sorts_by_hits_drops_cost_and_number_again() -> None:
    async with on_screen(RulesView(), lab(), (120, 40)) as (app, pilot):
        before = lines(app)
        await pilot.press("s")
        assert "by hits" in lines(app)[0]
        assert not any(line.startswith("IPv4") for line in lines(app))
        assert "filter FORWARD:2" in "\n".join(lines(app))
        await pilot.press("s")
        dropped = [line.split() for line in lines(app)[2:] if line.strip()]
        assert [line[1].split(":")[0] for line in dropped] == ["FORWARD"] * len(dropped)
        assert dropped
        await pilot.press("s")
        assert "by cost" in lines(app)[0]
        await pilot.press("s")
        assert lines(app) == before


async def test_a_click_on_a_title_sorts_the_rules_and_a_second_one_reverses() -> None:
    view, tallied = RulesView(), lab()
    tallied.feed(hit(44, start=280))  # not all rules equally often
    async with on_screen(view, tallied, (120, 40)) as (app, pilot):

        async def click(title: str) -> list[float]:
            at = lines(app)[1].index(title)
            await pilot.click(RulesView, offset=(at, 1))
            assert view._listing is not None
            of = view._listing.figures_of
            return [of(key).hits for key in view._keys if isinstance(key, RuleKey)]

        hits = await click("hits")
        assert "hits▾" in lines(app)[1]
        assert hits == sorted(hits, reverse=True)
        assert hits[0] > hits[-1]
        assert await click("hits") == sorted(hits)
        assert "hits▴" in lines(app)[1]
        # THEN titles of texts sort too, and the number brings the chains back
        await click("rule")
        texts = [line[line.index(" -") :] for line in lines(app)[2:] if " -" in line]
        assert texts == sorted(texts)
        assert texts
        await click("where")
        assert "Chain FORWARD (policy DROP)" in "\n".join(lines(app))


async def test_0_hides_rules_without_hits() -> None:
    async with on_screen(RulesView(), lab(), (120, 40)) as (app, pilot):
        assert "0: hide unhit rules" in lines(app)[0]
        await pilot.press("0")
        text = "\n".join(lines(app))
        assert "0: show unhit rules" in text
        assert "--dport 80" not in text
        assert "Chain WEB" not in text
        assert "-p udp -j DROP" in text
        await pilot.press("0")
        assert "Chain WEB" in "\n".join(lines(app))
        # AND the key is not offered where only rules with hits are listed anyway
        await pilot.press("s")
        assert "unhit" not in lines(app)[0]


async def test_the_cursor_stays_on_its_rule_while_others_move() -> None:
    tallied = lab()
    async with on_screen(RulesView(), tallied, (120, 12)) as (app, pilot):
        await pilot.press("s")
        for _ in range(4):
            await pilot.press("down")
        key, line = app.view.picked, app.view._line
        y = line - app.view.scroll_offset.y
        # WHEN rules with fewer hits overtake it
        entry, rule, end = streams.records(4000, 1000)
        entry["ruleset"], rule["rulenum"] = 1, 5
        tallied.feed(streams.frames(entry, rule, end))
        tallied.show(app.view)
        await pilot.pause()
        # THEN the cursor is on the same rule at the same height of the screen
        assert app.view.picked == key
        assert app.view._line - app.view.scroll_offset.y in (y, app.view._line)


async def test_a_cursor_that_was_not_moved_stays_at_the_top() -> None:
    tallied = lab()
    async with on_screen(RulesView(), tallied, (120, 12)) as (app, pilot):
        await pilot.press("s")
        tallied.feed(hit(4000, start=1000))
        tallied.show(app.view)
        await pilot.pause()
        assert app.view._line == 0
        assert app.view.scroll_offset.y == 0


async def test_changed_rules_are_shown_with_their_own_hits() -> None:
    tallied = lab()
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, pilot):
        chains = {"FORWARD": {"policy": "ACCEPT", "rules": ["-j NEW"]}}
        tallied.rules(chains, since=2, upto=2)
        tallied.feed(hit(40, generation=2, start=1000))
        tallied.show(app.view)
        await pilot.pause()
        text = "\n".join(lines(app))
        assert "-p udp -j DROP" not in text
        assert line_with(app, "-j NEW").split()[0] == "1"
        assert "2" in line_with(app, "-j NEW").split()
        assert "and 70 hits on earlier versions of the rules" in text


async def test_rules_that_changed_but_could_not_be_read_are_marked_as_previous() -> None:
    tallied = lab()
    tallied.traces[0].rulesets.feed(
        {"netns": NETNS, "family": 4, "table": "filter", "since": 5, "upto": 5}
    )
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, _):
        assert "changed since; these are the previous rules" in "\n".join(lines(app))


async def test_each_host_has_its_own_rules() -> None:
    tallied = Tallied(("one", "two"))
    for host in (0, 1):
        tallied.rules(CHAINS, host=host)
        tallied.feed(hit(280 * (1 + host)), host=host)
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, pilot):
        assert "router on two" in lines(app)[0]
        await pilot.press("right_square_bracket")
        assert "router on one" in lines(app)[0]
        while "-p udp -j DROP" not in picked(app):
            await pilot.press("down")
        await pilot.press("enter")
        assert tallied.matching(app.asked[0].query) == 14


async def test_hostile_rules_are_shown_as_text() -> None:
    tallied = Tallied()
    evil = '-m comment --comment "[bold red]\x1b[31m\u202e' + "x" * 4000 + '" -j DROP'
    tallied.rules({"FORWARD": {"policy": "[/]", "rules": [evil]}, "[@click=x]": {"rules": []}})
    tallied.feed(hit(40))
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, _):
        text = "\n".join(lines(app))
        assert "[bold red]\\x1b[31m\\u202e" in text
        assert "Chain [@click=x]" in text
        assert "\x1b" not in text
        assert all(cell_len(line) == 119 for line in lines(app))


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 132, 200, 300])
@pytest.mark.parametrize("sort", [0, 1])
async def test_lines_fit_every_width(width: int, sort: int) -> None:
    async with on_screen(RulesView(), lab(), (width, 24)) as (app, pilot):
        for _ in range(sort):
            await pilot.press("s")
        assert all(cell_len(line) == width - 1 for line in lines(app))
        if width >= 79:
            assert "-p udp -j DROP" in "\n".join(lines(app)) or not sort


async def test_a_resize_changes_the_columns_and_keeps_the_cursor_visible() -> None:
    async with on_screen(RulesView(), lab(), (200, 50)) as (app, pilot):
        assert "p50" in lines(app)[1]
        await pilot.press("end")
        key = app.view.picked
        await pilot.resize_terminal(80, 12)
        await pilot.pause()
        assert "p50" not in lines(app)[1]
        assert app.view.picked == key
        assert picked(app) in lines(app)


async def test_an_empty_view_shows_that_it_is_empty() -> None:
    async with on_screen(RulesView(), Tallied()) as (app, pilot):
        assert "No rules yet" in lines(app)[2]
        for key in ("enter", "s", "0", "down", "up", "end", "home", "right_square_bracket"):
            await pilot.press(key)
        assert app.asked == []
        assert app.notices == ["no rule under the cursor"]


async def test_rows_that_arrived_while_the_view_was_hidden_are_counted_when_it_is_shown() -> None:
    tallied = lab()
    view: Ledger = RulesView()
    async with on_screen(view, tallied, (120, 40)) as (app, pilot):
        switcher = app.query_one(ContentSwitcher)
        switcher.current = "other"
        await pilot.pause()
        tallied.feed(hit(280, start=1000))
        tallied.show(view)
        switcher.current = "view"
        await pilot.pause()
        assert "28" in line_with(app, "-p udp -j DROP").split()


@pytest.mark.parametrize(("width", "title"), [(80, "drop%▾"), (120, "drops▾")])
async def test_the_title_of_the_order_by_drops_is_marked_at_any_width(
    width: int, title: str
) -> None:
    async with on_screen(RulesView(), lab(), (width, 24)) as (app, pilot):
        await pilot.press("s", "s")
        assert "s by drops" in lines(app)[0]
        assert title in lines(app)[1]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (20, 5)])
async def test_a_screen_of_few_cells_shows_what_fits(size: tuple[int, int]) -> None:
    async with on_screen(RulesView(), lab(), size) as (app, pilot):
        for key in ("down", "s", "end", "I", "0", "s", "s", "home", "s"):
            await pilot.press(key)
        assert len(lines(app)) == size[1]


async def test_a_list_without_lines_has_no_cursor() -> None:
    view = RulesView()
    async with on_screen(view, lab(), (80, 24)) as (_, pilot):
        view.refill = list  # type: ignore[method-assign]
        view.fill()
        await pilot.press("down", "up", "end", "pageup")
        assert view.picked is None
