# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of the screen, which may change only on purpose.

They are drawn from recordings and made-up streams, independently of the clock, the
environment and the machine.  After an intended change, run
`pytest tests/tui/test_snapshots.py --snapshot-update`, review the difference in
tests/tui/__snapshots__ and commit it.  A failed run writes old and new side by side
to build/snapshots.html.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual import constants
from textual.pilot import Pilot

from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.trace.arrays.hashing import Hash
from ipttrace.tui.app import TraceApp
from ipttrace.tui.feed.source import FileSource, Source
from ipttrace.tui.neighbours.vendors import Vendors
from tests.data import messages, neighbours, stations, streams, tables
from tests.paths import DATA
from tests.tui.harness import Agent, laid_out, until
from tests.tui.replayed import SIZES, all_rows, settled, write

RECORDING = DATA / "screens.iptr"  # has rules and neighbours
MADE_WITH = Path(__file__).parent / "__snapshots__" / "made_with.json"
# Packages whose versions determine colours and text of the snapshots.
DRAWN_BY = ("rich", "textual")

Compare = Callable[..., bool]
Run = Callable[[Pilot[Any]], Awaitable[None]]


@pytest.fixture(autouse=True)
def same_versions(request: pytest.FixtureRequest) -> None:
    """Skip, and refuse to update, if other versions than the present ones drew the snapshots."""
    options = request.config.option
    options.snapshot_report = str(request.config.rootpath / "build" / "snapshots.html")
    now = {name: version(name) for name in DRAWN_BY}
    made = json.loads(MADE_WITH.read_text()) if MADE_WITH.exists() else {}
    if made and made != now:
        versions = " and ".join(f"{name} {made.get(name)} (here: {now[name]})" for name in now)
        if not options.update_snapshots:
            pytest.skip(f"the snapshots were drawn by {versions}")
        pytest.fail(
            f"the snapshots were drawn by {versions}: install these,"
            f" or remove {MADE_WITH.name} to draw all of them again"
        )
    if options.update_snapshots:
        MADE_WITH.parent.mkdir(exist_ok=True)
        MADE_WITH.write_text(json.dumps(now, indent=1) + "\n")


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same time, time zone, colours, hashes and vendors everywhere."""

    def same_hash(self: Hash, words: int) -> None:
        draw = random.Random(words)
        high, low = ([np.uint64(draw.getrandbits(64) | 1) for _ in range(words + 1)] for _ in "hl")
        self._rounds = high, low

    def same_vendors(self: Vendors, lladdrs: Iterable[str]) -> None:
        self._known |= {"001b21": "Intel Corporate", "005056": "VMware, Inc.", "000c29": "VMware"}

    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        patch.delenv("NO_COLOR", raising=False)
        patch.setenv("LC_ALL", "C.UTF-8")
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(constants, "COLOR_SYSTEM", "truecolor")
        patch.setattr(constants, "FILTERS", "")
        # Only the wall clock: without `monotonic`, no timer would expire.
        patch.setattr(time, "time", lambda: streams.WALL / 1e9)
        patch.setattr(time, "time_ns", lambda: streams.WALL)
        patch.setattr(Hash, "__init__", same_hash)
        patch.setattr(Vendors, "learn", same_vendors)
        time.tzset()
        yield
    time.tzset()


# What is on the screen.


def screen(source: Source) -> TraceApp:
    app = TraceApp(source, title="lab")
    app.theme = "textual-dark"  # independently of the environment
    return app


async def at_rest(app: TraceApp, pilot: Pilot[Any]) -> None:
    """Wait until the screen no longer changes by itself."""
    await settled(app, pilot)
    await until(pilot, lambda: not app.counting.behind(), "what it adds up to")
    app.refresh_bars()
    if app.switcher.current == "trace" and app.store.end:
        # Widths depend on the rows that were drawn: here only on those of the picture.
        strips = app.rows._strips
        strips.select(app.rows.selection)
        app.rows.refresh()
        await until(pilot, lambda: strips._needs and not strips.outgrown, "the columns")
    panes = app.side, app.neighbours
    await until(
        pilot,
        lambda: not any(pane.display and (pane._stale or pane._learning) for pane in panes),
        "neighbours",
    )
    counting = app.rules, app.flows, app.totals, app.drops
    await until(
        pilot,
        lambda: all(not one.display or (not one._stale and one._timer is None) for one in counting),
        "what is counted",
    )
    view = app.view
    if view.detailed:
        await until(pilot, lambda: not view._due and view.detail._trim is None, "the detail")
        assert view.row is not None
        assert view.detail.seq == view.row.index
    await until(pilot, lambda: app.rows._bar_timer is None, "the scroll bar")


async def arrived(pilot: Pilot[Any]) -> TraceApp:
    """The app, once it has read its stream."""
    app = pilot.app
    assert isinstance(app, TraceApp)
    await until(pilot, lambda: app.over, "the end of the stream")
    await until(pilot, lambda: laid_out(app, app.size.width), "a size")
    return app


async def press(pilot: Pilot[Any], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await pilot.pause()


def on_a_drop(*keys: str, text: str = "") -> Run:
    """Press `keys` on a packet that the lab's router drops, then enter `text` in the prompt."""

    async def run(pilot: Pilot[Any]) -> None:
        app = await arrived(pilot)
        drop = next(row for row in all_rows(app) if row.chain == "BLOCKLIST")
        app.rows.move_to(drop.index - 8)
        app.rows.move_to(drop.index)
        app.rules.choose(drop.host, drop.netns)
        await press(pilot, *keys)
        if text:
            app.prompt._input.cursor_blink = False
            await write(app, pilot, text)
            await pilot.press("enter")
        await at_rest(app, pilot)

    return run


async def neighbours_of_the_router(pilot: Pilot[Any]) -> None:
    """The neighbour view of a router after a minute."""
    app = await arrived(pilot)
    await press(pilot, "5")
    await at_rest(app, pilot)
    for pane in (app.neighbours, app.side):
        pane.choose(neighbours.ROUTER)
    await at_rest(app, pilot)


async def row_of_hostile_texts(pilot: Pilot[Any]) -> None:
    app = await arrived(pilot)
    app.rows.move_to(3)
    await press(pilot, "enter")
    await at_rest(app, pilot)


async def drops(pilot: Pilot[Any]) -> None:
    """Where a router's packets die."""
    app = await arrived(pilot)
    await press(pilot, "6")
    await at_rest(app, pilot)


async def journey_to_a_drop(pilot: Pilot[Any]) -> None:
    """A packet that the tables accepted, and that no neighbour took."""
    app = await arrived(pilot)
    app.rows.move_to(7)
    await press(pilot, "enter")
    await at_rest(app, pilot)


# Made-up streams.


def drops_stream(writer: Writer) -> None:
    stations.write(writer)


def neighbours_stream(writer: Writer) -> None:
    """One packet, and a minute of the tables of a router with two namespaces."""
    entry, rule, exit_ = streams.records(4)
    entry["netns"] = neighbours.ROUTER
    names = {str(neighbours.ROUTER): "router", str(neighbours.CLIENT): "client"}
    writer.hello(messages.hello(netns=names))
    for kind, array in enumerate((entry, rule, exit_)):
        writer.records(kind, array)
    lookups, hits = 123_456, 100_000
    for second in range(60):
        lookups += 40 + 30 * (second % 7)
        hits += 39 + 28 * (second % 7)
        arp = neighbours.table(4, 12 + second // 10, lookups=lookups, hits=hits)
        ndp = neighbours.table(6, 600, forced_gc_runs=second // 20, lookups=5000 + second)
        writer.message(Kind.NEIGHBOURS, messages.message(neighbours.tables(second, arp, ndp)))
    for netns, name in ((neighbours.ROUTER, "router"), (neighbours.CLIENT, "client")):
        frame = neighbours.namespace(netns, name, 59)
        writer.message(Kind.NEIGHBOURS, messages.message(frame))
    # Fragments that never come, and a conntrack table that is nearly full.
    lost = {"ReasmReqds": 1_262, "ReasmTimeout": 7, "ReasmFails": 7}
    frames = [tables.table(name) for name in ("ipv4", "ipv6", "conntrack")]
    frames += [tables.table("ipv4", 59, **lost), tables.table("conntrack", 59, entries=251_908)]
    for frame in (*frames, tables.look(59)):
        writer.message(Kind.TABLES, messages.message(frame))


HOSTILE = (
    "[red]x[/red][@click=app.quit]",
    "\x1b[2J\x1b]0;title\x07",
    "=cmd|' /C calc'!A0",
    "a b\nc\td\re",
    "\u202egnp.exe\u2066\u200b",
    "漢字漢字\U0001f468\u200d\U0001f469",
    "e" + "\u0301" * 9,
    "[/]" * 8,
)


def hostile_stream(writer: Writer) -> None:
    """Hostile text in every field, including a comment of 4,000 characters."""
    entry, rule, exit_ = streams.records(64)
    raw = [text.encode() for text in HOSTILE]
    for number in range(len(entry)):
        text = raw[number // 4 % len(raw)]
        # Only the last of a packet's four rows hit a rule with a known text.
        entry["comm"][number] = entry["in"][number] = text[:15]
        if number % 4 == 3:
            entry["table"][number] = rule["table"][number] = b"filter"
            entry["out"][number] = text[:15]
            rule["chain"][number] = text[:29]
            rule["rulenum"][number] = 1
    entry["ruleset"] = 1
    writer.hello(messages.hello(host="".join(HOSTILE[:2]), netns={"4026532456": HOSTILE[4]}))
    comment = f'-m comment --comment "{"".join(HOSTILE)}{"x" * 4000}" -j DROP'
    chains = {text: {"policy": None, "rules": [comment]} for text in HOSTILE}
    table = {"netns": 4026532456, "family": 4, "table": "filter", "backend": "legacy"}
    frame = {**table, "since": 1, "mono": 1, "upto": 1, "chains": chains}
    writer.message(Kind.RULES, messages.message(frame))
    for kind, array in enumerate((entry, rule, exit_)):
        writer.records(kind, array)
    writer.note("warn", HOSTILE[1] + HOSTILE[0] + HOSTILE[3])


# The tests.


@dataclass(frozen=True)
class Picture:
    """A stream, and what the user does."""

    run: Run
    stream: Callable[[Writer], None] | None = None  # None: the lab's recording


PICTURES = {
    "rows": Picture(on_a_drop()),
    "detail": Picture(on_a_drop("enter")),
    "rules": Picture(on_a_drop("2")),
    "flows": Picture(on_a_drop("3")),
    "totals": Picture(on_a_drop("4")),
    "neighbours": Picture(neighbours_of_the_router, neighbours_stream),
    "drops": Picture(drops, drops_stream),
    "journey": Picture(journey_to_a_drop, drops_stream),
    "hostile": Picture(row_of_hostile_texts, hostile_stream),
}


@pytest.mark.parametrize("size", SIZES, ids=["80x24", "200x50"])
@pytest.mark.parametrize("name", PICTURES)
def test_the_screen_has_not_changed(
    name: str, size: tuple[int, int], snap_compare: Compare, tmp_path: Path
) -> None:
    picture, path = PICTURES[name], RECORDING
    if picture.stream is not None:
        path = tmp_path / "made.iptr"
        with path.open("wb") as file:
            writer = Writer(file)
            picture.stream(writer)
            writer.end(messages.end("asked to"))
    app = screen(FileSource(path))
    assert snap_compare(app, terminal_size=size, run_before=picture.run)


def test_an_error_in_a_filter_has_not_changed(snap_compare: Compare) -> None:
    run = on_a_drop("f", "colon", text=" and sorce=10.1.0.2")
    app = screen(FileSource(RECORDING))
    assert snap_compare(app, terminal_size=(80, 24), run_before=run)


def test_the_screen_without_rows_has_not_changed(snap_compare: Compare) -> None:
    # GIVEN an armed agent, but no packet
    agent = Agent()
    with ExitStack() as stack:
        stack.callback(agent.near.close)
        stack.callback(agent.hang_up)
        agent.send(
            streams.hello(expr="tcp port 8080"),
            streams.books(expr="tcp port 8080"),
            streams.note("info", "following packets through NAT"),
        )

        async def run(pilot: Pilot[Any]) -> None:
            app = pilot.app
            assert isinstance(app, TraceApp)
            await until(pilot, lambda: app.feeds[0].trace.notes, "the agent's note")
            await until(pilot, lambda: app.view.empty.display, "the empty screen")
            app.refresh_bars()

        app = screen(agent.source)
        assert snap_compare(app, terminal_size=(80, 24), run_before=run)
