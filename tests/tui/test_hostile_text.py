# SPDX-License-Identifier: GPL-2.0-only
"""Hostile text from the kernel, the network and files cannot break the screen."""

from __future__ import annotations

import unicodedata

import pytest
from rich.cells import cell_len

from tests.data import streams
from tests.tui.harness import live, screen_text, shown, until

TEXTS = [
    "[red]x[/red][@click=app.quit]",
    "\x1b[2J\x1b]0;title\x07",
    "a\nb\tc\rd\x00e",
    "\u202egnp.exe\u2066\u200b",
    "\U0001f468\u200d\U0001f469漢字漢字",
    "e" + "\u0301" * 20,
    "[/]" * 8,
    "$(reboot) `id` =1+1",
    "\x9b31m\x85",
]


def _assert_harmless(lines: list[str], width: int) -> None:
    for line in lines:
        for char in line:
            assert unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}, line
        assert cell_len(line) == width


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("width", [80, 200])
async def test_hostile_names_in_records_do_not_break_the_layout(text: str, width: int) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    kinds = streams.records(8)
    kinds[0]["comm"] = raw[:16]
    kinds[0]["in"] = kinds[0]["out"] = raw[:16]
    kinds[0]["table"] = kinds[1]["table"] = kinds[1]["chain"] = raw[:32]
    async with live(streams.hello(), streams.frames(*kinds), rows=8, size=(width, 30)) as (
        _,
        app,
        _pilot,
    ):
        _assert_harmless(screen_text(app), width)
        # THEN verdicts are still in one column
        column = {line.index("ACCEPT") for line in shown(app) if "ACCEPT" in line}
        assert column


@pytest.mark.parametrize("text", TEXTS)
async def test_hostile_text_in_the_hello_frame_does_not_break_the_layout(text: str) -> None:
    hello = streams.hello(host=text, kernel=text, expr=text * 9, netns={"4026532456": text})
    note = streams.note("error", text)
    async with live(hello, note, streams.rows(8), rows=8, size=(200, 30), title=text) as (
        _,
        app,
        pilot,
    ):
        await until(pilot, lambda: "8 rows" in app.status_bar.text)
        await pilot.pause()
        _assert_harmless(screen_text(app), 200)


@pytest.mark.parametrize("text", TEXTS)
async def test_hostile_text_does_not_break_the_empty_screen(text: str) -> None:
    hello = streams.hello(host=text, kernel=text, expr=text)
    async with live() as (agent, app, pilot):
        agent.source.progress = text
        await until(pilot, lambda: app._progress)
        _assert_harmless(screen_text(app), 80)
        agent.send(hello, streams.note("info", text), streams.end(reason=text))
        await until(pilot, lambda: "ENDED" in app.status_bar.text)
        _assert_harmless(screen_text(app), 80)


async def test_markup_is_shown_as_text() -> None:
    kinds = streams.records(4)
    kinds[1]["chain"] = b"[b]x[/b]"
    note = streams.note("warn", "[b]y[/b]")
    async with live(
        streams.hello(expr="[b]z[/b]"), streams.frames(*kinds), note, rows=4, size=(120, 24)
    ) as (_, app, pilot):
        await until(pilot, lambda: "[b]y[/b]" in "\n".join(screen_text(app)))
        assert "[b]x[/b]" in shown(app)[0]
        assert "[b]z[/b]" in app.status_bar.text


@pytest.mark.parametrize("value", [None, 3, [], {"a": 1}, "", True])
async def test_hello_values_of_the_wrong_type_are_ignored(value: object) -> None:
    hello = streams.hello(host=value, kernel=value, expr=value, netns=value)
    async with live(hello, streams.books(state=value), streams.rows(8), rows=8) as (_, app, pilot):
        await until(pilot, lambda: "ARMED" in app.status_bar.text)
        assert "ACCEPT" in shown(app)[0]
