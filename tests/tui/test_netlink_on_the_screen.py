# SPDX-License-Identifier: GPL-2.0-only
"""Rows of the netlink engine on the screen, alone and with those of the kernel engine."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import pytest

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.writer import Writer
from ipttrace.trace.session import Trace
from ipttrace.trace.story import story
from ipttrace.tui.detail import lines as detail_lines
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.totals.view import TotalsView
from tests.data import streams
from tests.data.messages import hello
from tests.data.netlink_rows import INET, IP, POLICY, RULE, RecordedCalls, input_from_every_source
from tests.tui.harness import live, screen_text, shown, until
from tests.tui.tallied import NETNS, Tallied, line_with, lines, on_screen, picked

HELLO = streams.hello(engine="kernel+netlink")
NETLINK = streams.hello(engine="netlink")


@pytest.mark.parametrize("width", [80, 120, 200])
async def test_the_list_shows_the_family_of_tables_and_marks_unknown_values(width: int) -> None:
    # GIVEN one packet in INPUT of legacy (from each engine), iptables-nft and inet tables
    data = input_from_every_source().data()
    async with live(HELLO, data, rows=4, size=(width, 24)) as (_, app, _pilot):
        kernel, legacy, nft, inet = shown(app)[:4]
        assert "inet t" in inet
        assert "jail" in inet
        assert " ? ✗ DROP" in inet
        assert " 1   ? " in legacy
        assert "✓ ACCEPT" in kernel
        assert "✓ ACCEPT" in nft
        # THEN tables of the same name show their family if there is room
        assert ("ip filt" in nft) == (width > 80)
        assert "ip filt" not in kernel + legacy
        for line in (legacy, nft, inet):
            assert "None" not in line
            assert "0ns" not in line
        assert "engine kernel+netlink" in screen_text(app)[0]


async def test_the_detail_lists_once_what_netlink_does_not_report() -> None:
    store = input_from_every_source().trace().store
    found = story(store, 3)
    assert found is not None
    made = detail_lines.lines(found, 100, detail_lines.KnownNames())
    texts = ["".join(text for text, _ in line.cells) for line in made]
    text = "\n".join(texts)
    assert text.count("cost, process and CPU unknown: traced over netlink") == 1
    assert "trace id 1f2e3d4c" in text
    for word in ("skb ", "sock ", "cpu ", "pid", "None", "INPUT 0", "jail 0"):
        assert word not in text
    # THEN the tables of both engines are listed, each with its family
    journey = [line for line in texts if "INPUT" in line]
    names = ("INPUT filter", "INPUT filter", "INPUT ip filter", "INPUT inet t")
    for line, name in zip(journey, names, strict=True):
        assert name in line
    assert "500ns" in journey[0]
    assert "in 2 → jail ?" in text
    assert "Conntrack  unknown: traced over netlink" in text


async def test_the_detail_of_netlink_alone_has_no_times() -> None:
    told = RecordedCalls()
    told.nft(b"t", INET, [(b"in", 3, POLICY)], first=True)
    found = story(told.trace("netlink").store, 0)
    assert found is not None
    made = detail_lines.lines(found, 80, detail_lines.KnownNames())
    texts = ["".join(text for text, _ in line.cells).rstrip() for line in made]
    assert "Journey  1 table" in texts
    titles = texts[texts.index("Journey  1 table") + 1]
    assert titles.split() == ["hook", "table", "rule", "verdict", "in→out"]
    # THEN a policy belongs to the base chain, which may have any name
    assert "inet t in policy" in " ".join(" ".join(texts).split())


def ruled() -> Tallied:
    """Legacy, iptables-nft and inet tables, each hit."""
    tallied = Tallied()
    tallied.feed(HELLO)
    iptables = {"INPUT": {"policy": "ACCEPT", "rules": ["-p udp -j ACCEPT"]}}
    tallied.rules(iptables)
    tallied.rules(iptables, family="ip", backend="iptables-nft")
    inet = {
        "in": {"policy": "drop", "rules": ["ct state established accept", "jump jail"]},
        "jail": {"policy": None, "rules": ["udp dport 53 drop"]},
    }
    tallied.rules(inet, family="inet", table="t", backend="nft")
    told = input_from_every_source()
    for entry in told.entries:
        entry["ruleset"] = 1
    tallied.feed(told.data())
    return tallied


async def test_tables_and_chains_have_the_names_of_their_own_tools() -> None:
    async with on_screen(RulesView(), ruled(), (120, 40)) as (app, _):
        text = "\n".join(lines(app))
        assert "IPv4 filter" in text
        assert "ip filter (iptables-nft)" in text
        assert "inet t" in text
        assert text.count("-p udp -j ACCEPT") == 2
        assert "jump jail" in line_with(app, "jump jail")
        assert "-A" not in text
        assert "Chain in (policy drop)" in text
        assert "Chain jail (1 reference)" in text
        # THEN no cost is shown if it is unknown
        assert "nan" not in text.lower()
        assert "ns" not in line_with(app, "jump jail").split("jump")[0]
        assert "rule (number unknown)" in text


@pytest.mark.parametrize(("rule", "rows"), [("jump jail", 1), ("(number unknown)", 1)])
async def test_enter_shows_the_rows_that_hit_a_rule_of_nftables(rule: str, rows: int) -> None:
    tallied = ruled()
    async with on_screen(RulesView(), tallied, (120, 40)) as (app, pilot):
        for _ in range(30):
            if rule in picked(app):
                break
            await pilot.press("down")
        await pilot.press("enter")
        (asked,) = app.asked
        assert "tables=inet" in asked.query
        assert f"netns={NETNS}" in asked.query
        assert tallied.matching(asked.query) == rows


async def test_totals_separate_tables_and_average_only_rows_with_a_cost() -> None:
    async with on_screen(TotalsView(), ruled(), (160, 50)) as (app, _):
        text = "\n".join(lines(app))
        assert line_with(app, "ip filter")
        assert line_with(app, "inet t")
        assert "cost of a row, mean" in text
        assert "peak  500ns" in text or "peak 500ns" in text
    tallied = Tallied()
    told = RecordedCalls()
    told.nft(b"t", IP, [(b"in", 1, RULE)], first=True)
    tallied.feed(told.data())
    async with on_screen(TotalsView(), tallied, (160, 50)) as (app, _):
        text = "\n".join(lines(app))
        assert "cost of a row  unknown: traced over netlink" in text
        assert "mean" not in text


async def test_the_bar_shows_where_the_filter_runs() -> None:
    where = "partly in the kernel, the rest in the agent, on the reported headers"
    async with live(NETLINK, streams.rows(8), rows=8, size=(160, 24)) as (agent, app, pilot):
        agent.send(streams.books(engine="netlink", expr="", filter="every packet"))
        await until(pilot, lambda: "traced: all packets" in app.status_bar.text)
        assert "every packet" not in app.status_bar.text
        # WHEN there is a filter
        agent.send(streams.books(engine="netlink", expr="tcp port 80", filter=where))
        await until(pilot, lambda: "traced: tcp port 80" in app.status_bar.text)
        # THEN it is shown if there is room, without displacing anything
        assert "partly in the kernel" in app.status_bar.text
        assert "lost 0" in app.status_bar.text
        assert "following" in app.status_bar.text
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "partly" not in app.status_bar.text)
        assert "traced: tcp port 80" in app.status_bar.text


async def test_the_empty_screen_of_the_netlink_engine_does_not_warn_about_nftables() -> None:
    async with live(
        NETLINK, streams.books(engine="netlink", expr="icmp", filter="in the kernel")
    ) as (
        _agent,
        app,
        pilot,
    ):
        await until(pilot, lambda: "Waiting for the first packet" in str(app.view.empty.content))
        text = str(app.view.empty.content)
        assert "not seen by the kernel engine" not in text
        assert "chain of nftables" in text
        assert "icmp  in the kernel" in text


async def test_keys_filter_by_legacy_tables_if_there_are_nftables_tables_too() -> None:
    data = input_from_every_source().data()
    async with live(HELLO, data, rows=4, size=(120, 24)) as (_, app, pilot):

        def counted(words: str) -> bool:
            return words in app.filter_bar.text

        for seq, tables, rows in ((0, "legacy", 2), (2, "ip", 1), (3, "inet", 1)):
            app.rows.move_to(seq)
            await pilot.press("c")
            await until(pilot, partial(counted, f"{rows} of 4"))
            assert f"tables={tables}" in app.shown.filters.text
            await pilot.press("backspace")
            await until(pilot, lambda: "all rows" in app.filter_bar.text)
    # AND the kernel engine alone has legacy tables only
    async with live(streams.hello(), streams.rows(8), rows=8) as (_, app, pilot):
        await pilot.press("c")
        await until(pilot, lambda: "▼ chain " in app.filter_bar.text)
        assert "tables" not in app.shown.filters.text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_detail_has_long_names_whole(width: int) -> None:
    chain, table = "endpoint-ZWRBQNPI-kube-system/kube-dns/udp/dns__10.244.0.4/53", "t" * 128
    told = RecordedCalls()
    told.nft(b"t~0001", INET, [(b"endpoint~0002", 3, RULE)], first=True)
    sink = BytesIO()
    writer = Writer(sink)
    writer.hello(hello(engine="netlink"))
    writer.names({"t~0001": table, "endpoint~0002": chain})
    trace = Trace()
    for frame in Decoder().feed(sink.getvalue() + told.data()):
        trace.feed(frame)
    trace.finish()
    found = story(trace.store, 0)
    assert found is not None
    made = detail_lines.lines(found, width, detail_lines.KnownNames())
    texts = ["".join(text for text, _ in line.cells) for line in made]
    assert max(map(len, texts)) <= width
    joined = "".join(text.strip() for text in texts)
    assert chain in joined
    assert table in joined


def netlink_only() -> bytes:
    told = RecordedCalls()
    told.nft(b"t", INET, [(b"in", 1, RULE)], first=True)
    return told.data()


async def test_keys_that_cannot_work_over_netlink_say_why() -> None:
    async with live(NETLINK, netlink_only(), rows=1) as (_, app, pilot):
        await pilot.press("p")
        why = "the process is not known over netlink"
        await until(pilot, lambda: app.notice_line.shown[0] == why)
        assert "1 row " in app.status_bar.text
    tallied = Tallied()
    tallied.feed(netlink_only())
    for view, presses in ((RulesView(), 3), (FlowsView(), 2)):
        async with on_screen(view, tallied) as (screen, pilot):
            await pilot.press(*"s" * presses)
            await pilot.pause()
            assert "Cost is not known over netlink." in "\n".join(lines(screen))
