# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace sockets` of a recording, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ipttrace.cli import main
from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.stream.writer import Writer
from tests import paths
from tests.data.messages import end, hello
from tests.data.stages import HANDSHAKE, stage


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A handshake with its listener's process, in the namespace "web"."""
    file = tmp_path / "handshake.iptr"
    with file.open("wb") as sink:
        writer = Writer(sink)
        writer.hello(hello(engine="none", netns={"7": "web"}))
        writer.processes({"processes": {"1": {"pid": 5, "comm": "nginx"}}})
        stages = [stage(what, at, owner=1) for at, what in enumerate(HANDSHAKE)]
        writer.records(record.SOCKET, np.concatenate(stages).astype(record.SOCKET_DTYPE))
        writer.end(end())
    return str(file)


def test_a_recordings_stages_are_printed_and_counted(
    recorded: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sockets", "--file", recorded]) == 0
    output = capfd.readouterr()
    lines = output.out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "SYN taken",
        "SYN-ACK sent",
        "established",
        "accepted",
    ]
    assert all("web" in line and "nginx (pid 5)" in line for line in lines)
    assert output.err.startswith("rows=4 records=4 lost=0 missed=0")


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_as_data_and_only_so_many(
    recorded: str, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sockets", "--file", recorded, "--format", format, "--count", "3"]) == 0
    output = capfd.readouterr()
    text = io.StringIO(output.out, newline="")
    rows = list(csv.DictReader(text)) if format == "csv" else [json.loads(one) for one in text]
    assert [row["stage"] for row in rows] == ["SYN taken", "SYN-ACK sent", "established"]
    assert {row["netns_name"] for row in rows} == {"web"}
    assert output.err.startswith("rows=3 ")


def test_a_long_frame_is_printed_to_its_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a frame of more stages than are kept at a time
    file = tmp_path / "long.iptr"
    with file.open("wb") as sink:
        writer = Writer(sink)
        writer.hello(hello(engine="none"))
        many = np.repeat(stage(record.SYN_TAKEN), 20_000).astype(record.SOCKET_DTYPE)
        writer.copy(Frame(Kind.SOCKET, many.tobytes()))
        writer.end(end())
    assert main(["sockets", "--file", str(file), "--format", "csv"]) == 0
    output = capfd.readouterr()
    assert output.out.count("SYN taken") == 20_000
    assert output.err.startswith("rows=20000 records=20000 ")


def test_a_recording_without_sockets_has_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sockets", "--file", str(paths.LAB)]) == 0
    assert capfd.readouterr().out == ""


def test_stages_are_no_rows(recorded: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", recorded]) == 0
    assert capfd.readouterr().err.startswith("rows=0 records=4")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--file", "x", "port", "80"], 2, "give no EXPR"),
        (["--file", "x", "--duration", "1"], 2, "no tracing options"),
        (["--file", "/missing"], 1, "/missing: No such file or directory"),
        (["port", "http:"], 2, ""),
        (["--format", "pcapng"], 2, "no such choice"),
        (["--count", "0"], 2, "not a whole number"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], status: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main(["sockets", *arguments])
    except SystemExit as ended:
        found = int(ended.code or 0)
    error = capfd.readouterr().err
    assert found == status
    assert error.startswith("ipttrace: ")
    assert reason in error
    # A filter has its own line, with a caret under what is wrong.
    assert error.count("\n") <= (3 if "^" in error else 2)
