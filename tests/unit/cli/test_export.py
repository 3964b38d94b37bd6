# SPDX-License-Identifier: GPL-2.0-only
"""export and replay as commands: which rows, in which format, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from ipttrace.cli import main
from ipttrace.stream import record
from ipttrace.stream.frames import Writer
from tests.data import synth
from tests.paths import LAB

LAB = str(LAB)


def table(written: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written, newline="")))


def stream(file: IO[bytes], about: dict[str, Any]) -> Writer:
    """A short stream without its end."""
    writer = Writer(file)
    clock = {"mono": synth.MONO, "wall": synth.WALL}
    writer.hello({"engine": "kernel", "clock": clock, **about})
    records = synth.make(23)
    writer.records(record.ENTRY, records.entries)
    writer.records(record.RULE, records.rules)
    writer.records(record.EXIT, records.exits)
    return writer


def test_a_query_picks_the_rows_and_the_summary_counts_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN a recorded lab run
    assert main(["export", LAB]) == 0
    rows = table(capfd.readouterr().out)
    dropped = [row for row in rows if row["verdict"] == "DROP"]
    assert 0 < len(dropped) < len(rows)
    # WHEN only what was dropped is asked for
    assert main(["export", LAB, "--query", "verdict=DROP"]) == 0
    # THEN these rows come, in any format, and the summary has their number
    said = capfd.readouterr()
    assert table(said.out) == dropped
    assert said.err.startswith(f"rows={len(dropped)} records=")
    assert main(["replay", LAB, "--format", "jsonl", "--query", "verdict=DROP"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["time"] for line in lines] == [row["time"] for row in dropped]


def test_the_count_is_of_rows_that_match(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", LAB, "--query", "verdict=DROP", "--count", "3"]) == 0
    said = capfd.readouterr()
    assert [row["verdict"] for row in table(said.out)] == ["DROP"] * 3
    assert said.err.startswith("rows=3 ")


def test_namespaces_are_known_by_name_to_a_query(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", LAB, "--query", "netns=ipt-router", "--count", "7"]) == 0
    assert len({row["netns"] for row in table(capfd.readouterr().out)}) == 1


@pytest.mark.parametrize("command", [["export", LAB], ["replay", LAB], ["print"]])
def test_a_bad_query_points_at_the_place(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--format", "csv", "--query", "verdict=DROP and chian~X"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    first, query, caret = said.err.splitlines()
    assert first.startswith("ipttrace: there is no field chian")
    assert query == "verdict=DROP and chian~X"
    assert caret == " " * query.index("chian") + "^" * len("chian")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_opens_what_export_writes(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # GIVEN a recorded lab run as packets
    assert main(["export", LAB, "--format", "pcapng"]) == 0
    file = tmp_path / "lab.pcapng"
    file.write_bytes(capfdbinary.readouterr().out)
    # WHEN tshark looks for what a rule dropped
    command = ["tshark", "-n", "-r", str(file), "-Y", 'frame.comment contains " DROP "']
    command += ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    # THEN it finds as many packets as rows say DROP, each with the rule that did it
    found = run.stdout.splitlines()
    assert main(["export", LAB, "--query", "verdict=DROP"]) == 0
    rows = table(capfdbinary.readouterr().out.decode())
    assert len(found) == len(rows)
    for line, row in zip(found, rows, strict=True):
        assert f"{row['chain']}:{row['rulenum']}" in line
    # AND a packet that was not let through is on the device it came from
    assert [line.split("\t")[0] for line in found] == [row["in"] or row["out"] for row in rows]


def test_packets_come_while_the_stream_stands_still(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # GIVEN a stream that brings some packets within a moment and then stays open
    fifo = tmp_path / "live"
    os.mkfifo(fifo)
    run = subprocess.Popen(
        [sys.executable, "-m", "ipttrace", "export", str(fifo), "--format", "pcapng"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    with open(fifo, "wb") as file:
        stream(file, {})
        file.flush()
        # WHEN nothing follows THEN they are written all the same
        data = b""
        while struct.pack("<I", 6) not in [data[at : at + 4] for at in starts(data)]:
            assert select.select([run.stdout], [], [], 60)[0]
            came = os.read(run.stdout.fileno(), 65536)
            assert came
            data += came
    # AND they are what a whole file gives
    data += run.communicate()[0]
    assert run.returncode == 0
    whole = tmp_path / "x.iptr"
    with open(whole, "wb") as file:
        stream(file, {}).end({"reason": "done"})
    assert main(["export", str(whole), "--format", "pcapng"]) == 0
    assert capfdbinary.readouterr().out == data


def starts(data: bytes) -> list[int]:
    """Where the whole blocks of a pcapng file begin."""
    found, at = [], 0
    while at + 8 <= len(data) and at + struct.unpack_from("<I", data, at + 4)[0] <= len(data):
        found.append(at)
        at += struct.unpack_from("<I", data, at + 4)[0]
    return found


def test_packets_are_not_for_a_terminal() -> None:
    # GIVEN a terminal as stdout
    there, here = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-m", "ipttrace", "export", LAB, "--format", "pcapng"],
        stdout=here,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(here)
    os.close(there)
    # WHEN packets are asked for THEN one line says what to do
    assert run.returncode == 2
    assert run.stderr == "ipttrace: packets are nothing for a terminal: redirect them\n"


def test_names_of_namespaces_may_be_anything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a stream whose namespaces' names are no names
    names = {"²": "x", "9" * 5000: "y", "4026531840": "\x1b[2J", "-1": None, "1": [3]}
    for netns in (names, ["x"], "x", None):
        path = tmp_path / "x.iptr"
        with open(path, "wb") as file:
            stream(file, {"netns": netns}).end({"reason": "done"})
        # WHEN it is shown THEN the rows come, and nothing that a terminal obeys
        assert main(["export", str(path), "--format", "text"]) == 0
        shown = capfd.readouterr().out
        assert len(shown.splitlines()) > 23
        assert all(line.isprintable() for line in shown.splitlines())
