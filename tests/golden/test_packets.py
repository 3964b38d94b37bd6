# SPDX-License-Identifier: GPL-2.0-only
"""The pcapng output against a golden file, and tshark's reading of that file.

After an intended change: IPTTRACE_WRITE_GOLDEN=1 pytest tests/golden, then review
packets.txt, which is tshark's reading, before committing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ipttrace.view import pcapng
from tests.data.packets import ABOUT, NAMES, store

HERE = Path(__file__).parent
FIELDS = [
    "frame.time_epoch",
    "frame.interface_name",
    "frame.interface_description",
    "frame.packet_id",
    "frame.packet_flags_direction",
    "frame.cap_len",
    "frame.len",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "tcp.dstport",
    "udp.dstport",
    "frame.comment",
]


def written(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(pcapng, "__version__", "0.0")
    held, output = store(), pcapng.Pcapng(NAMES)
    parts = [output.begin(ABOUT)]
    # In batches that split a journey.
    for seqs in (range(3), range(3, held.end)):
        data, count = output.rows(held, seqs)
        assert count == len(seqs)
        parts.append(data)
    return b"".join([*parts, output.end()])


def test_packets_are_written_as_in_the_golden_file(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN traversals of every kind, including hostile names and wrong lengths
    # WHEN they are written as packets
    data = written(monkeypatch)
    # THEN each byte is as in the golden file
    golden = HERE / "packets.pcapng"
    if os.environ.get("IPTTRACE_WRITE_GOLDEN"):
        golden.write_bytes(data)
    assert data == golden.read_bytes()


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_the_packets_and_their_traversals() -> None:
    # GIVEN the golden file, WHEN tshark reads it
    command = ["tshark", "-n", "-r", str(HERE / "packets.pcapng"), "-T", "fields"]
    command += ["-E", "separator=|", "-E", "aggregator= "]
    command += [word for field in FIELDS for word in ("-e", field)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    # THEN it shows what a person has reviewed
    golden = HERE / "packets.txt"
    if os.environ.get("IPTTRACE_WRITE_GOLDEN"):
        golden.write_text(run.stdout)
    assert run.stdout == golden.read_text()
    # AND all of it is printable
    assert all(line.isprintable() for line in run.stdout.splitlines())
