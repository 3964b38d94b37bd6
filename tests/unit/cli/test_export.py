# SPDX-License-Identifier: GPL-2.0-only
"""export and replay as commands: which rows, which format, and what they refuse."""

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
from ipttrace.stream.frames import Kind
from ipttrace.stream.writer import Writer
from tests import paths
from tests.data import neighbours, streams, synth
from tests.data.messages import end, hello, message

LAB = str(paths.LAB)


def table(written: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written, newline="")))


def stream(file: IO[bytes], **about: Any) -> Writer:
    """A short stream without an END frame."""
    writer = Writer(file)
    writer.hello(hello(clock={"mono": synth.MONO, "wall": synth.WALL}, **about))
    records = synth.make(23)
    writer.records(record.ENTRY, records.entries)
    writer.records(record.RULE, records.rules)
    writer.records(record.EXIT, records.exits)
    return writer


def test_a_query_selects_the_rows_and_the_summary_counts_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # GIVEN a recorded lab run
    assert main(["export", LAB]) == 0
    rows = table(capfd.readouterr().out)
    dropped = [row for row in rows if row["verdict"] == "DROP"]
    assert 0 < len(dropped) < len(rows)
    # WHEN only the dropped ones are exported
    assert main(["export", LAB, "--query", "verdict=DROP"]) == 0
    # THEN these rows are written, in any format, and the summary has their number
    output = capfd.readouterr()
    assert table(output.out) == dropped
    assert output.err.startswith(f"rows={len(dropped)} records=")
    assert main(["replay", LAB, "--format", "jsonl", "--query", "verdict=DROP"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["time"] for line in lines] == [row["time"] for row in dropped]


def test_count_counts_matching_rows(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", LAB, "--query", "verdict=DROP", "--count", "3"]) == 0
    output = capfd.readouterr()
    assert [row["verdict"] for row in table(output.out)] == ["DROP"] * 3
    assert output.err.startswith("rows=3 ")


def test_a_query_can_name_a_network_namespace(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", LAB, "--query", "netns=ipt-router", "--count", "7"]) == 0
    assert len({row["netns"] for row in table(capfd.readouterr().out)}) == 1


def test_rows_without_arp_are_those_that_came_while_their_neighbour_did_not_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a recording in which a neighbour ceases to answer between two packets to it
    path = tmp_path / "trace.iptr"
    states = (neighbours.REACHABLE, neighbours.FAILED, neighbours.REACHABLE)
    about: dict[str, Any] = {
        "devices": [neighbours.device(3, "eth1")],
        "routes": [neighbours.route("192.0.2.0/24", (3, None))],
    }
    with path.open("wb") as file:
        file.write(streams.hello())
        for number, state in enumerate(states):
            every = [neighbours.neighbour(f"192.0.2.{last}", state, 3) for last in range(1, 10)]
            frame = neighbours.namespace(4026532456, neighbours=every, second=number, **about)
            Writer(file).message(Kind.NEIGHBOURS, message(frame))
            file.write(streams.rows(8, start=8 * number))
        file.write(streams.end())
    # THEN its rows that let a packet through are those from in between
    for command in (["export"], ["replay", "--format", "csv"]):
        assert main([*command, str(path), "--query", "no_arp"]) == 0
        rows = table(capfd.readouterr().out)
        assert [row["chain"] for row in rows] == ["FORWARD"] * 2
        assert [row["journey"] for row in rows] == ["0x9", "0xd"]


@pytest.mark.parametrize("command", [["export", LAB], ["replay", LAB], ["print"]])
def test_a_bad_query_is_reported_with_a_caret_under_the_error(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--format", "csv", "--query", "verdict=DROP and chian~X"]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    first, query, caret = output.err.splitlines()
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
    # WHEN tshark searches for dropped packets
    command = ["tshark", "-n", "-r", str(file), "-Y", 'frame.comment contains " DROP "']
    command += ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    # THEN it finds one packet per row with DROP, each with the deciding rule
    found = run.stdout.splitlines()
    assert main(["export", LAB, "--query", "verdict=DROP"]) == 0
    rows = table(capfdbinary.readouterr().out.decode())
    assert len(found) == len(rows)
    for line, row in zip(found, rows, strict=True):
        assert f"{row['chain']}:{row['rulenum']}" in line
    # AND a dropped packet is on the device that it arrived on
    assert [line.split("\t")[0] for line in found] == [row["in"] or row["out"] for row in rows]


def test_packets_are_written_while_the_stream_is_idle(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    # GIVEN a stream with some packets at its beginning that then stays open
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
        stream(file)
        file.flush()
        # WHEN nothing follows THEN they are written nevertheless
        data = b""
        while struct.pack("<I", 6) not in [data[at : at + 4] for at in starts(data)]:
            assert select.select([run.stdout], [], [], 60)[0]
            came = os.read(run.stdout.fileno(), 65536)
            assert came
            data += came
    # AND they are the same as from a complete file
    data += run.communicate()[0]
    assert run.returncode == 0
    complete = tmp_path / "x.iptr"
    with open(complete, "wb") as file:
        stream(file).end(end())
    assert main(["export", str(complete), "--format", "pcapng"]) == 0
    assert capfdbinary.readouterr().out == data


def starts(data: bytes) -> list[int]:
    """Offsets of the complete blocks of a pcapng file."""
    found, at = [], 0
    while at + 8 <= len(data) and at + struct.unpack_from("<I", data, at + 4)[0] <= len(data):
        found.append(at)
        at += struct.unpack_from("<I", data, at + 4)[0]
    return found


def test_pcapng_is_not_written_to_a_terminal() -> None:
    # GIVEN a terminal as stdout
    outer, inner = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-m", "ipttrace", "export", LAB, "--format", "pcapng"],
        stdout=inner,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(inner)
    os.close(outer)
    # WHEN pcapng is asked for THEN one line says what to do
    assert run.returncode == 2
    assert run.stderr == "ipttrace: refusing to write pcapng to a terminal; redirect stdout\n"


def test_invalid_names_of_namespaces_do_no_harm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a stream with invalid names of network namespaces
    names = {"²": "x", "9" * 5000: "y", "4026531840": "\x1b[2J", "-1": None, "1": [3]}
    for netns in (names, ["x"], "x", None):
        path = tmp_path / "x.iptr"
        with open(path, "wb") as file:
            stream(file, netns=netns).end(end())
        # WHEN it is shown THEN the rows appear, without control characters
        assert main(["export", str(path), "--format", "text"]) == 0
        shown = capfd.readouterr().out
        assert len(shown.splitlines()) > 23
        assert all(line.isprintable() for line in shown.splitlines())
