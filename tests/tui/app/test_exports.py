# SPDX-License-Identifier: GPL-2.0-only
"""Exports of rows by key."""

from __future__ import annotations

import csv
import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, RadioSet, Static

from ipttrace.tui.widgets.export_dialog import ExportDialog
from ipttrace.view import export
from ipttrace.view.export import Export
from tests.data import streams
from tests.tui.app.dialogs import dialog, notice_with
from tests.tui.harness import live, more, screen_text, until
from tests.tui.replayed import SIZES, listed, replayed, seq_of, settled

pytestmark = pytest.mark.usefixtures("folder")


def hint(asked: ExportDialog) -> str:
    return str(asked.query_one("#export-hint", Static).content)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "pcapng", "txt"])
async def test_the_filtered_view_is_exported_in_the_format_of_the_ending(
    folder: Path, ending: str
) -> None:
    async with replayed() as (app, pilot):
        # GIVEN a filter
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP"))
        await pilot.press("v")
        await settled(app, pilot)
        count = len(listed(app))
        # WHEN it is exported THEN the view is offered
        asked = await dialog(app, pilot, f"out.{ending}")
        assert asked.query_one(RadioSet).pressed_index == 1
        assert f"matching the filter: {count:,} rows" in "\n".join(screen_text(app))
        await pilot.press("enter")
        await notice_with(app, pilot, f"{count:,} rows written to out.{ending}")
        assert app.focused is app.rows
        # AND the file has these rows
        data = (folder / f"out.{ending}").read_bytes()
        if ending == "csv":
            rows = rows_of(folder / "out.csv")
            assert [row["skb"] for row in rows] == [
                hex(app.store.row(seq).skb or 0) for seq in listed(app)
            ]
            assert {row["verdict"] for row in rows} == {"DROP"}
        elif ending == "jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            assert [one["verdict"] for one in lines] == ["DROP"] * count
        elif ending == "pcapng":
            assert data[:4] == b"\x0a\x0d\x0d\x0a"
        else:
            assert sum(b"DROP" in line for line in data.splitlines()) == count
        assert os.listdir(folder) == [f"out.{ending}"]


@pytest.mark.parametrize("size", SIZES)
async def test_among_the_rules_the_dialog_shows_that_rows_are_exported(
    folder: Path, size: tuple[int, int]
) -> None:
    async with replayed(size=size) as (app, pilot):
        await dialog(app, pilot)
        assert "─ export rows ─" in "\n".join(screen_text(app))
        await pilot.press("escape", "2")
        # WHEN the rules are listed THEN nothing suggests that they are what is written
        await dialog(app, pilot)
        assert "─ export rows, not the list in this view ─" in "\n".join(screen_text(app))


@pytest.mark.parametrize("size", SIZES)
async def test_the_user_chooses_marked_rows_the_view_or_everything(
    folder: Path, size: tuple[int, int]
) -> None:
    async with replayed(size=size) as (app, pilot):
        # WHEN no row is marked and no filter in force THEN everything is offered
        asked = await dialog(app, pilot)
        assert asked.query_one(RadioSet).pressed_index == 2
        text = "\n".join(screen_text(app))
        for part in (
            "marked rows: 0 rows",
            "matching the filter: 985 rows",
            "everything held: 985 rows",
        ):
            assert part in text
        assert asked.query_one(Input).value.endswith(".csv")
        await pilot.press("escape")
        assert not os.listdir(folder)
        # WHEN rows are marked THEN they are offered
        for seq in (30, 20):
            app.rows.move_to(seq)
            await pilot.press("m")
        asked = await dialog(app, pilot, "marked.csv")
        assert asked.query_one(RadioSet).pressed_index == 0
        await pilot.press("enter")
        await notice_with(app, pilot, "2 rows written")
        assert [row["skb"] for row in rows_of(folder / "marked.csv")] == [
            hex(app.store.row(seq).skb or 0) for seq in (20, 30)
        ]
        # AND keys make another choice
        asked = await dialog(app, pilot, "all.csv")
        await pilot.press("shift+tab", "down", "down", "space", "tab", "enter")
        await notice_with(app, pilot, "985 rows written")
        assert len(rows_of(folder / "all.csv")) == 985


async def test_replacing_a_file_needs_a_second_enter(folder: Path) -> None:
    (folder / "there.csv").write_text("mine")
    async with replayed() as (app, pilot):
        asked = await dialog(app, pilot, "there.csv")
        await pilot.press("enter")
        assert app.screen is asked
        assert "there.csv exists: Enter again replaces it" in hint(asked)
        assert (folder / "there.csv").read_text() == "mine"
        # WHEN the name is changed and changed back THEN the dialog asks again
        await pilot.press("x", "backspace")
        await pilot.press("enter")
        await notice_with(app, pilot, "985 rows written")
        assert len(rows_of(folder / "there.csv")) == 985


async def test_escape_leaves_the_file_as_it_was(folder: Path) -> None:
    (folder / "there.csv").write_text("mine")
    async with replayed() as (app, pilot):
        await dialog(app, pilot, "there.csv")
        await pilot.press("enter", "escape")
        assert app.focused is app.rows
        assert (folder / "there.csv").read_text() == "mine"
        assert not app.exports.running


@pytest.mark.parametrize("path", ["out", "out.doc", " ", "x.csv.gz"])
async def test_an_unknown_file_ending_keeps_the_dialog_open(folder: Path, path: str) -> None:
    async with replayed() as (app, pilot):
        asked = await dialog(app, pilot, path)
        await pilot.press("enter")
        assert app.screen is asked
        for ending in (".csv", ".jsonl", ".pcapng"):
            assert ending in hint(asked)
        assert not os.listdir(folder)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("no/such/folder/x.csv", "cannot write no/such/folder/x.csv: No such file or directory"),
        ("folder.csv", "folder.csv is a directory"),
        ("a" * 300 + ".csv", "File name too long"),
    ],
)
async def test_a_file_that_cannot_be_written_gives_a_one_line_error(
    folder: Path, path: str, line: str
) -> None:
    (folder / "folder.csv").mkdir()
    async with replayed() as (app, pilot):
        asked = await dialog(app, pilot, path)
        await pilot.press("enter")
        if app.screen is asked:  # it is there already
            await pilot.press("enter")
        await notice_with(app, pilot, line)
        assert app.notice_line.shown[1]
        assert not app.exports.running
        assert len(listed(app)) == 985
        assert os.listdir(folder) == ["folder.csv"]


@pytest.mark.parametrize("path", ["[red]x[.csv", "\x1b[2Jx\0\u202e.csv", "=cmd().csv", "漢字.csv"])
async def test_any_file_name_is_accepted(folder: Path, path: str) -> None:
    async with replayed() as (app, pilot):
        for _ in range(2):
            await dialog(app, pilot, path)
            for text in screen_text(app):
                assert text.isprintable()
            await pilot.press("enter")
            if isinstance(app.screen, ExportDialog):
                for text in screen_text(app):
                    assert text.isprintable()
                await pilot.press("enter")
            await notice_with(app, pilot, "985 rows written")
            await pilot.press("escape")
        assert len(os.listdir(folder)) == 1
        assert os.listdir(folder)[0].isprintable()


class Gate:
    """Stops an export between two steps until the test opens the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        batches = Export._batches

        def held(exporting: Export) -> Iterator[Any]:
            for number, batch in enumerate(batches(exporting)):
                if number == 2:
                    self.reached.set()
                    assert self.opened.wait(60)
                yield batch

        monkeypatch.setattr(export, "_STEP", 100)
        monkeypatch.setattr(Export, "_batches", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


async def test_escape_stops_a_long_export_and_no_file_remains(folder: Path, gate: Gate) -> None:
    async with replayed() as (app, pilot):
        await dialog(app, pilot, "long.csv")
        await pilot.press("enter")
        await until(pilot, gate.reached.is_set)
        # THEN its progress is shown, and keys work meanwhile
        await until(pilot, lambda: "20%" in "\n".join(screen_text(app)), "a progress bar")
        await pilot.press("home", "down")
        assert app.rows.cursor == 1
        # AND no second export starts
        await pilot.press("e")
        await notice_with(app, pilot, "an export is running")
        # WHEN it is stopped
        await pilot.press("escape")
        gate.opened.set()
        await notice_with(app, pilot, "the export was stopped: no file was written")
        await until(pilot, lambda: "20%" not in "\n".join(screen_text(app)))
        assert not os.listdir(folder)
        assert not app.exports.running
        # THEN another one can be started
        await dialog(app, pilot, "again.csv")
        await pilot.press("enter")
        await notice_with(app, pilot, "985 rows written")


async def test_rows_keep_coming_during_an_export(folder: Path, gate: Gate) -> None:
    async with live(streams.hello(), streams.rows(400), rows=400) as (agent, app, pilot):
        await dialog(app, pilot, "live.csv")
        await pilot.press("enter")
        await until(pilot, gate.reached.is_set)
        await more(agent, app, pilot, streams.rows(400, start=400), 800)
        gate.opened.set()
        await notice_with(app, pilot, "400 rows written")
        assert len(rows_of(folder / "live.csv")) == 400
        assert len(listed(app)) == 800


async def test_quitting_during_an_export_leaves_no_partial_file(folder: Path, gate: Gate) -> None:
    async with live(streams.complete(400), rows=400, grace=0.05) as (_, app, pilot):
        await dialog(app, pilot, "half.csv")
        await pilot.press("enter")
        await until(pilot, gate.reached.is_set)
        await pilot.press("q")
        gate.opened.set()
        await until(pilot, lambda: app.return_value is not None)
    left = os.listdir(folder)
    assert left in ([], ["half.csv"])
    if left:
        assert len(rows_of(folder / "half.csv")) == 400


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk full"), (errno.EIO, "Input/output error")]
)
async def test_a_disk_that_fills_during_an_export_gives_one_line_that_names_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setattr(export, "_STEP", 100)
    write_ = Export._write

    def full(exporting: Export, fd: int, data: bytes) -> None:
        if exporting.done >= 300:
            raise OSError(number, os.strerror(number))
        write_(exporting, fd, data)

    monkeypatch.setattr(Export, "_write", full)
    async with replayed() as (app, pilot):
        before = listed(app)
        await dialog(app, pilot, "full.csv")
        await pilot.press("enter")
        line = await notice_with(app, pilot, words)
        assert line == f"cannot write full.csv: {words}: 300 of 985 rows written, no file kept"
        assert sum(words in one for one in screen_text(app)) == 1
        assert listed(app) == before
        assert not os.listdir(folder)
        assert app.focused is app.rows


async def test_a_bug_in_an_export_is_shown_and_the_screen_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Export, "_batches", lambda exporting: 1 // 0)
    async with replayed() as (app, pilot):
        await dialog(app, pilot, "bug.csv")
        await pilot.press("enter")
        await notice_with(app, pilot, "the export failed")
        assert not app.exports.running


async def test_arrow_keys_choose_which_rows_are_exported_and_it_shows_without_colour() -> None:
    async with live(streams.hello(), streams.rows(1), rows=1) as (_, app, pilot):
        asked = await dialog(app, pilot)
        chosen = asked.query_one(RadioSet)
        assert chosen.pressed_index == 2
        await pilot.press("up")
        await until(pilot, lambda: chosen.pressed_index == 1)
        # THEN a set without rows cannot be chosen
        await pilot.press("up")
        await pilot.pause()
        assert chosen.pressed_index == 1
        drawn = "\n".join(screen_text(app))
        assert "(*) matching the filter: 1 row " in drawn
        assert "( ) everything held: 1 row " in drawn
        await pilot.press("down")
        await until(pilot, lambda: chosen.pressed_index == 2)
