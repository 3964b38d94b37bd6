# SPDX-License-Identifier: GPL-2.0-only
"""The rules, flows and totals views count the rows of the filter in force."""

from __future__ import annotations

import io

from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from ipttrace.tui.app import TraceApp
from tests.data import messages, streams
from tests.tui.harness import live, more, screen_text, until
from tests.tui.replayed import matching, replayed, settled, write

NETNS = 4026532456


def text(app: TraceApp) -> str:
    return "\n".join(screen_text(app))


async def test_totals_follow_the_filter_and_say_so() -> None:
    async with replayed(size=(160, 50)) as (app, pilot):
        await pilot.press("4")
        await until(pilot, lambda: "985 rows of" in text(app))
        assert "filtered" not in text(app)
        # WHEN only drops are wanted
        await pilot.press("colon")
        await write(app, pilot, "verdict=DROP")
        await pilot.press("enter")
        await settled(app, pilot)
        drops = len(matching(app, "verdict=DROP"))
        await pilot.press("4")
        # THEN the totals are theirs
        await until(pilot, lambda: f"{drops} rows of" in text(app))
        assert "✓ ACCEPT" not in text(app).split("rows of")[1].split("cost of")[0]
        await until(pilot, lambda: "Totals  filtered, C: all rows" in text(app))
        # AND the key that the title names counts all rows again
        await pilot.press("C")
        await until(pilot, lambda: "985 rows of" in text(app))
        assert "filtered" not in text(app)
        await pilot.press("backspace")
        await until(pilot, lambda: f"{drops} rows of" in text(app))


async def test_flows_and_rules_follow_the_filter() -> None:
    async with replayed(size=(160, 50)) as (app, pilot):
        await pilot.press("3")
        await until(pilot, lambda: " Flows " in text(app))
        every = len(app.counting.current().flows)
        await pilot.press("colon")
        await write(app, pilot, "proto=UDP and table=filter")
        await pilot.press("enter")
        await settled(app, pilot)
        found = matching(app, "proto=UDP and table=filter")
        rows = app.store.rows(found)
        flows = {row.flow for row in rows}
        assert 0 < len(flows) < every
        await pilot.press("3")
        await until(pilot, lambda: f" Flows {len(flows)}  filtered, C: all rows" in text(app))
        # AND the rules' hits are those of the rows' paths
        await pilot.press("2")
        await until(pilot, lambda: "  filtered, C: all rows" in text(app))
        listing = app.rules._listing
        assert listing is not None
        steps = [step for row in rows if row.netns == listing.netns for step in row.path]
        assert sum(of.hits for of in listing.figures.values()) == len(steps)
        # AND the kernel's counters, which are of all packets, do not stand beside them
        assert "kernel" not in text(app).split("netns")[-1].splitlines()[1]


async def test_new_rows_are_counted_if_they_match() -> None:
    async with live(streams.hello(), streams.rows(400), size=(160, 50), rows=400) as (
        agent,
        app,
        pilot,
    ):
        await pilot.press("colon")
        await write(app, pilot, "table=filter")
        await pilot.press("enter")
        await settled(app, pilot)
        await pilot.press("4")
        await until(pilot, lambda: "100 rows of 100 packets" in text(app))
        await more(agent, app, pilot, streams.rows(400, 400), 800)
        await until(pilot, lambda: "200 rows of 200 packets" in text(app))
        await pilot.press("colon")
        await write(app, pilot, " and table=nothing")
        await pilot.press("enter")
        await pilot.press("4")
        await until(pilot, lambda: "No row matches the filter." in text(app))


async def test_the_age_of_the_kernels_counters_is_shown() -> None:
    sink = io.BytesIO()
    writer = Writer(sink)
    key = {"netns": NETNS, "family": 4, "table": "filter"}
    rules = {"policy": "DROP", "rules": ["-j ACCEPT"]}
    writer.message(
        Kind.RULES,
        messages.message(
            {
                **key,
                "backend": "legacy",
                "since": 1,
                "mono": 1,
                "upto": 1,
                "chains": {"FORWARD": rules},
            }
        ),
    )
    counted = {"policy": [1234, 99999], "rules": [[567, 99999]]}
    # GIVEN counters that were read at 0 s, and rows up to 3 s later
    writer.message(
        Kind.COUNTERS,
        messages.message({**key, "since": 1, "mono": 0, "chains": {"FORWARD": counted}}),
    )
    entry, rule, end = streams.records(400)
    entry["time"] += 3_000_000_000
    end["time"] = entry["time"] + end["cost"]
    frames = sink.getvalue() + streams.frames(entry, rule, end)
    async with live(streams.hello(), frames, size=(120, 30), rows=400) as (_, app, pilot):
        await pilot.press("2")
        await until(pilot, lambda: "1,234" in text(app))
        await until(pilot, lambda: "kernel: 3s ago" in text(app))
