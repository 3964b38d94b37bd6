# SPDX-License-Identifier: GPL-2.0-only
"""How rows look: columns, widths, colours, journeys, bars."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from rich.cells import cell_len
from textual.screen import Screen

from tests.data import streams
from tests.tui.harness import laid_out, live, more, screen_text, seqs, shown, until


async def test_a_row_shows_table_chain_rule_and_verdict() -> None:
    # GIVEN 7 packets through four tables, the last of them dropped in filter
    async with live(streams.hello(), streams.rows(28), rows=28, size=(80, 40)) as (_, app, _p):
        lines = shown(app)
        # THEN each table has its row, and the drop is shown as a word and a mark
        assert "raw    PREROUTING     1 ✓ ACCEPT" in lines[0]
        assert "mangle PREROUTING   pol ✓ ACCEPT" in lines[1]
        assert "nat    PREROUTING     1 ✓ ACCEPT" in lines[2]
        assert "filter FORWARD        1 ✓ ACCEPT" in lines[3]
        assert "filter FORWARD        2 ✗ DROP" in lines[27]


async def test_a_wide_screen_shows_names_devices_process_and_cost() -> None:
    async with live(streams.hello(), streams.rows(8), rows=8, size=(300, 50)) as (_, app, _p):
        line = shown(app)[3]
        for text in (
            "router",
            "ping 1234",
            "eth0→eth1",
            "TCP SYN",
            "10.1.0.2:40000 → 192.0.2.1:80",
        ):
            assert text in line
        assert line.rstrip().endswith("5.90µs")
        titles = screen_text(app)[2]
        for title in ("time", "netns", "process", "in→out", "source → destination", "#", "cost"):
            assert title in titles


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 100, 132, 200, 300])
async def test_no_width_breaks_a_line(width: int) -> None:
    async with live(streams.hello(), streams.rows(60), rows=60, size=(width, 24)) as (_, app, _p):
        for line in screen_text(app):
            assert cell_len(line) == width
        if width >= 40:
            assert all("ACCEPT" in line or "DROP" in line for line in shown(app))


async def test_resizing_keeps_the_tail_and_redraws_the_columns() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (_, app, pilot):
        for size in ((200, 50), (60, 12), (100, 30), (80, 24)):
            # WHEN the terminal changes its size
            await pilot.resize_terminal(*size)
            await until(pilot, partial(laid_out, app, size[0]))
            # THEN the newest row is still the last line, and titles fit the columns
            assert seqs(app)[1] == 399
            assert all(cell_len(line) == size[0] for line in screen_text(app))
            assert ("netns" in screen_text(app)[2]) == (size[0] >= 120)


async def test_rows_of_one_packet_share_a_rail() -> None:
    # GIVEN two packets whose rows come interleaved
    first = streams.records(4)
    second = streams.records(4, start=4)
    mixed = b""
    for at in range(4):
        for packet in (first, second):
            packet[0]["time"][at] = packet[1]["time"][at] = 1000 * at
            packet[2]["time"][at] = 1000 * at + (1 if packet is first else 2)
    for at in range(4):
        for packet in (first, second):
            mixed += streams.frames(*(kind[at : at + 1] for kind in packet))
    async with live(streams.hello(), streams.rows(8, start=100), mixed, rows=16, size=(80, 40)) as (
        _,
        app,
        _p,
    ):
        marks = "".join(line[0] for line in shown(app)[:16])
    # THEN a new packet, its continuation and its return have different marks
    assert marks == "┌│││┌│││┌┌├├├├├├"


async def test_lost_and_missed_stay_at_every_width_and_are_marked() -> None:
    books = streams.books(lost=[3, 4, 5], missed=7)
    async with live(streams.hello(), streams.rows(8), books, rows=8) as (_, app, pilot):
        await until(pilot, lambda: "lost 12" in app.status_bar.text, "lost in the bar")

        def is_wide(width: int) -> bool:
            return app.status_bar.size.width == width

        for width in (200, 100, 80, 60, 40):
            await pilot.resize_terminal(width, 24)
            await until(pilot, partial(is_wide, width))
            assert "lost 12" in app.status_bar.text
            assert "missed 7" in app.status_bar.text
            assert "ARMED" in app.status_bar.text


async def test_the_bars_show_what_is_traced_and_its_state() -> None:
    hello = streams.hello(expr="icmp and host 10.0.0.1")
    async with live(hello, streams.rows(400), rows=400, size=(140, 24)) as (_, app, pilot):
        await until(pilot, lambda: "400 rows" in app.status_bar.text)
        for text in ("ARMED", "traced: icmp and host 10.0.0.1", "lost 0", "missed 0", "/s"):
            assert text in app.status_bar.text
        for text in ("lab", "engine kernel", "6.1.0-40-amd64"):
            assert text in app.about_bar.text


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "nord", "ansi-dark"])
async def test_every_theme_draws_the_rows(theme: str) -> None:
    async with live(streams.hello(), streams.rows(100), rows=100) as (_, app, pilot):
        if theme not in app.available_themes:
            pytest.skip(f"this Textual has no theme {theme}")
        app.theme = theme
        await pilot.pause()
        assert "✓ ACCEPT" in shown(app)[-1]
        assert any("✗ DROP" in line for line in shown(app))


async def test_without_colours_the_cursor_and_verdicts_are_still_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with live(streams.hello(), streams.rows(100), rows=100) as (_, app, _p):
        assert app.no_color
        lines = shown(app)
        assert any("✗ DROP" in line for line in lines)
        rows = app.rows
        cursor = next(iter(rows.render_line(rows.size.height - 1))).style
        other = next(iter(rows.render_line(0))).style
        assert cursor is not None
        assert other is not None
        assert (cursor.bgcolor, cursor.reverse) != (other.bgcolor, other.reverse)


async def test_a_trace_without_rows_explains_itself() -> None:
    async with live() as (agent, app, pilot):
        # GIVEN a machine that boots
        agent.source.progress = "unpacking the kernel"
        await until(pilot, lambda: "unpacking the kernel" in "\n".join(screen_text(app)))
        agent.source.progress = "booting"
        await until(pilot, lambda: "… booting" in "\n".join(screen_text(app)))
        assert "✓ unpacking the kernel" in "\n".join(screen_text(app))
        assert "BOOTING" in app.status_bar.text
        # WHEN the agent is armed and no packet comes
        agent.send(streams.hello(expr="port 53"), streams.note("info", "probes are in place"))
        # THEN the screen shows what is armed, why it may be empty, and the keys
        said = ("Armed on lab", "port 53", "Why no rows yet?", "probes are in place")
        keys = ("? help", "q quit")
        await until(
            pilot,
            lambda: all(part in "\n".join(screen_text(app)) for part in (*said, *keys)),
        )
        # WHEN the first row comes
        await more(agent, app, pilot, streams.rows(4), 4)
        # THEN the list is there and has the focus
        assert "ACCEPT" in "\n".join(screen_text(app))
        assert app.focused is app.rows


async def test_a_warning_of_the_agent_is_shown() -> None:
    note = streams.note("warn", "conntrack is full")
    async with live(streams.hello(), streams.rows(4), note, rows=4) as (_, app, pilot):
        await until(pilot, lambda: "conntrack is full" in "\n".join(screen_text(app)))
        await pilot.press("escape")
        assert "conntrack is full" not in "\n".join(screen_text(app))


async def test_new_rows_do_not_lay_out_the_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN a screen that follows, a page full of rows
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        await until(pilot, lambda: app.rows._bar_timer is None, "a bar at rest")
        laid: list[object] = []
        refresh = Screen._refresh_layout

        def counted(screen: Screen[object], *args: Any, **named: Any) -> None:
            laid.append(screen)
            refresh(screen, *args, **named)

        monkeypatch.setattr(Screen, "_refresh_layout", counted)
        # WHEN more rows come
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        await until(pilot, lambda: app.rows.vertical_scrollbar.window_virtual_size == 800, "a bar")
        await until(pilot, lambda: seqs(app)[1] == 799, "the newest row")
        # THEN the bar is at the tail, the line of the newest row is drawn in its full
        # width, and the screen was not laid out for it
        bar = app.rows.vertical_scrollbar
        assert bar.position + bar.window_size == 800
        assert all(cell_len(line) == 80 for line in screen_text(app))
        assert not laid


async def test_the_screen_says_how_many_older_rows_are_no_longer_held() -> None:
    async with live(streams.hello(), streams.rows(400), rows=400, capacity=100) as (_, app, pilot):
        app.refresh_bars()
        await pilot.pause()
        assert app.store.first > 0
        told = f"older rows are no longer held: {app.store.first}"
        assert told in app.filter_bar.text
