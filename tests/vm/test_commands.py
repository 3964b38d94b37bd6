# SPDX-License-Identifier: GPL-2.0-only
"""The commands as a user types them: rows as lines, into a pipe, into a file and back."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from ipttrace.lab import traffic
from ipttrace.lab.network import Network
from ipttrace.lab.network import addresses as at
from ipttrace.trace.row import FIELDS, Step
from tests.lab import scenarios
from tests.lab.scenarios import COUNT, Scenario
from tests.lab.stages import Tally
from tests.program import PROGRAM, Command, summary
from tests.vm.conftest import SHARED

pytestmark = SHARED


def scenario(name: str, family: int = 4) -> Scenario:
    return next(one for one in scenarios.scenarios(family) if one.name == name)


def of_role(one: Scenario, role: str) -> Tally:
    return scenarios.tally(each for each in one.expected if each.role == role)


def tally(rows: list[dict[str, Any]], role: str) -> Tally:
    """Rows of jsonl, counted as scenarios count them."""
    found: Tally = Counter()
    for row in rows:
        path = tuple(Step(**step) for step in row["path"])
        found[role, row["hook"], row["table"], path, row["verdict"]] += 1
    return found


def test_print_as_csv_ends_after_count_rows(network: Network, tmp_path: Path) -> None:
    # GIVEN print of 46 of the router's rows of echo requests, as CSV
    expr = f"icmp[icmptype] == icmp-echo and dst host {at.SERVER4}"
    arguments = ["print", expr, "--netns", network.router, "--format", "csv", "--count", "46"]
    with Command(tmp_path, [*arguments, "--ready-file", str(tmp_path / "ready")]) as command:
        command.wait_ready()
        # WHEN 23 requests are sent, which make 117 rows
        assert traffic.ping(network.client, at.SERVER4, COUNT).received == COUNT
        status, out = command.finish()
        rows, records = summary(command.stderr())
    # THEN it ends by itself, with a header, 46 rows, and one summary
    assert status == 0
    head, *lines = csv.reader(io.StringIO(out, newline=""))
    assert head == list(FIELDS)
    assert (len(lines), rows) == (46, 46)
    assert records > 3 * 46
    first = dict(zip(head, lines[0], strict=True))
    assert (first["hook"], first["table"], first["path"]) == (
        "PREROUTING",
        "raw",
        "PREROUTING:3/policy",
    )
    assert (first["src"], first["dst"], first["icmp"]) == (at.CLIENT4, at.SERVER4, "8/0")
    assert (first["match"], first["verdict"], first["in"]) == ("policy", "ACCEPT", "lan0")
    assert {line[FIELDS.index("netns")] for line in lines} == {str(network.inodes()["router"])}
    times = [line[FIELDS.index("time")] for line in lines]
    assert times == sorted(times)


def test_ctrl_c_ends_print_with_the_summary_and_130(network: Network, tmp_path: Path) -> None:
    one = scenario("rejected with an ICMP error")
    expected = of_role(one, "router")
    # (An earlier test's packet may die in the meantime, in a queue of fragments for example.)
    arguments = ["print", "--no-drops", "--netns", network.router, "--format", "jsonl"]
    with Command(tmp_path, [*arguments, "--ready-file", str(tmp_path / "ready")]) as command:
        command.wait_ready()
        assert one.run(network) == one.sent
        # GIVEN that all rows were printed
        rows = [json.loads(line) for line in command.read_lines(expected.total())]
        assert tally(rows, "router") == expected, [row for row in rows if not row["table"]]
        assert {tuple(row) for row in rows} == {FIELDS}
        # WHEN Ctrl-C is pressed
        command.interrupt()
        status, rest = command.finish()
        assert summary(command.stderr())[0] == len(rows)
    assert (status, rest) == (130, "")


def test_print_into_head_ends_with_status_0_when_head_ends(
    network: Network, tmp_path: Path
) -> None:
    ready, out = tmp_path / "ready", tmp_path / "out"
    line = (
        f"{PROGRAM} print --netns {network.router} --ready-file {ready} icmp | head -3 >{out};"
        ' echo "${PIPESTATUS[@]}"'
    )
    with Command(tmp_path, [], argv=["bash", "-c", line]) as command:
        command.wait_ready()
        assert traffic.ping(network.client, at.SERVER4, COUNT).received == COUNT
        status, statuses = command.finish()
        stderr = command.stderr()
    # THEN head has printed three lines, and ipttrace its summary
    assert (status, statuses) == (0, "0 0\n")
    assert len(out.read_text().splitlines()) == 3
    assert summary(stderr)[0] >= 3


def test_a_recording_replays_and_exports_as_it_was_shown_live(
    network: Network, tmp_path: Path
) -> None:
    one = scenario("rejected with a reset")
    expected = of_role(one, "router")
    stream, live = tmp_path / "trace.ipt", tmp_path / "live"
    record_folder, replay_folder = tmp_path / "record", tmp_path / "replay"
    record_folder.mkdir()
    replay_folder.mkdir()
    ready = str(record_folder / "ready")
    # GIVEN a recording to stdout that is shown and kept in a file at the same time
    arguments = ["record", "-", "--no-drops", "--netns", network.router, "--ready-file", ready]
    show = ["replay", "/dev/stdin", "--format", "jsonl"]
    with (
        live.open("wb") as shown,
        Command(record_folder, arguments) as record,
        Command(replay_folder, show, stdin=subprocess.PIPE, stdout=shown) as replay,
        stream.open("wb") as file,
    ):
        record.wait_ready()
        assert one.run(network) == one.sent
        source, sink = record.process.stdout, replay.process.stdin
        assert source is not None
        assert sink is not None
        watched = Watched(expected.total())
        while data := source.read1(1 << 16):  # type: ignore[attr-defined]
            file.write(data)
            sink.write(data)
            sink.flush()
            if watched.feed(data):
                record.interrupt()
        sink.close()
        assert (record.finish()[0], record.stderr()[:-1]) == (130, [])
        assert replay.process.wait(60) == 0
        (recorded, shown_live) = (summary(record.stderr()), summary(replay.stderr()))
    # THEN the rows shown live are those of what was sent
    rows = [json.loads(line) for line in live.read_text().splitlines()]
    assert tally(rows, "router") == expected
    assert recorded == shown_live
    assert recorded[0] == expected.total()

    # AND replaying the file shows the same
    def again(*words: str) -> str:
        done = subprocess.run([PROGRAM, *words], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert summary(done.stderr.decode().splitlines()) == recorded
        return done.stdout.decode()

    assert again("replay", str(stream), "--format", "jsonl") == live.read_text()
    # AND so does an export as CSV, column by column
    _, *cells = csv.reader(io.StringIO(again("export", str(stream)), newline=""))
    assert cells == [[as_cell(name, row[name]) for name in FIELDS] for row in rows]


class Watched:
    """Whether the stream has brought so many rows: `feed` returns True once."""

    def __init__(self, rows: int) -> None:
        from ipttrace.stream.decoder import Decoder
        from ipttrace.trace.session import Trace

        self._decoder = Decoder()
        self._trace = Trace()
        self._rows = rows
        self._done = False

    def feed(self, data: bytes) -> bool:
        for frame in self._decoder.feed(data):
            self._trace.feed(frame)
        if self._done or self._trace.store.end < self._rows:
            return False
        self._done = True
        return True


def as_cell(name: str, value: Any) -> str:
    """A value of jsonl in CSV."""
    if name == "path":
        return ">".join(
            f"{step['chain']}:{step['rulenum']}"
            + ("" if step["match"] == "rule" else f"/{step['match']}")
            for step in value
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    # A text that begins like a rule would be a formula in a spreadsheet.
    guard = "'" if isinstance(value, str) and value.startswith("-") else ""
    return "" if value is None else guard + str(value)
