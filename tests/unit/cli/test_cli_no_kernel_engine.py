# SPDX-License-Identifier: GPL-2.0-only
"""The commands on a kernel that cannot load modules: one clear line, or the other engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.stream.decoder import read_file
from ipttrace.stream.frames import Kind

pytestmark = [
    pytest.mark.skipif(Path("/proc/modules").exists(), reason="this kernel can load modules"),
    pytest.mark.skipif(os.geteuid() != 0, reason="without root the first message is another"),
]

REASON = f"kernel {os.uname().release} cannot load modules (CONFIG_MODULES is off)"
WHY = f"ipttrace: {REASON}: boot a distribution's kernel, or trace in a VM: ipttrace lab\n"


def ipttrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it in a network namespace without packets and rules."""
    return subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "ipttrace", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("print", "--engine", "kernel"),
        ("print", "--engine", "kernel", "--format", "csv", "tcp port 80"),
        ("agent", "--engine", "kernel"),
    ],
    ids=" ".join,
)
def test_a_kernel_without_modules_is_one_line(arguments: tuple[str, ...]) -> None:
    # GIVEN a kernel without loadable modules
    # WHEN the kernel engine is asked for
    done = ipttrace(*arguments)
    # THEN one line says why it cannot run, without a row or a header
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)


def test_a_recording_that_cannot_begin_creates_and_damages_no_file(tmp_path: Path) -> None:
    # GIVEN an older recording, and an unused name
    older = tmp_path / "older"
    older.write_bytes(b"what was recorded")
    # WHEN recording to either fails
    for path in (older, tmp_path / "new"):
        done = ipttrace("record", str(path), "--engine", "kernel")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)
    # THEN nothing has changed
    assert [path.name for path in tmp_path.iterdir()] == ["older"]
    assert older.read_bytes() == b"what was recorded"


def test_by_default_it_traces_over_netlink_and_notes_why(tmp_path: Path) -> None:
    # WHEN no engine is given
    done = ipttrace("record", str(tmp_path / "one"), "--duration", "0.1")
    # THEN the one that can run is used
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("engine=netlink"), done.stderr
    # AND a note in the recording says why
    frames = list(read_file(tmp_path / "one"))
    notes = [frame.json["text"] for frame in frames if frame.kind == Kind.NOTE]
    text = "tracing over netlink in this network namespace (--netns all: in every one)"
    end = f"; no kernel engine: {REASON}"
    assert any(note.startswith(text) and note.endswith(end) for note in notes), notes
    # AND print does the same
    done = ipttrace("print", "--duration", "0.1", "tcp port 80")
    assert done.returncode == 0, done.stderr
    note, summary = done.stderr.splitlines()
    assert note.startswith(f"ipttrace: {text}; "), note
    assert note.endswith(end), note
    assert summary.endswith("engine=netlink")


def test_if_neither_engine_can_run_one_line_gives_both_reasons() -> None:
    # GIVEN a process without CAP_NET_ADMIN
    drop = "--bounding-set=-net_admin", "--inh-caps=-net_admin"
    # WHEN it tries to trace
    argv = ["setpriv", *drop, sys.executable, "-m", "ipttrace", "print"]
    done = subprocess.run(
        ["unshare", "-n", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    # THEN one line gives the reason for each engine
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "needs CAP_NET_ADMIN" in line
    assert line.endswith(f"; the kernel engine cannot run: {REASON}")


def test_the_doctor_reports_for_each_engine_whether_it_can_run() -> None:
    done = ipttrace("doctor")
    assert done.returncode == 0, done.stdout
    found = {" ".join(line.split()[:3]): line for line in done.stdout.splitlines()}
    assert f"no, because {REASON}" in found["fail engine: kernel"]
    assert "yes: iptables-nft, nftables" in found["ok engine: netlink"]
    assert not done.stderr
