# SPDX-License-Identifier: GPL-2.0-only
"""The real commands on a kernel that cannot load modules: one clear line, or the other engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.stream.frames import Kind, read_file

pytestmark = [
    pytest.mark.skipif(Path("/proc/modules").exists(), reason="this kernel can load modules"),
    pytest.mark.skipif(os.geteuid() != 0, reason="without root the first reason is another"),
]

REASON = f"kernel {os.uname().release} cannot load modules (CONFIG_MODULES is off)"
WHY = f"ipttrace: {REASON}: boot a kernel of the distribution, or ipttrace lab\n"


def ipttrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Where nobody else's packets are, nor rules."""
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
    # WHEN somebody wants to trace with a module
    done = ipttrace(*arguments)
    # THEN one line says why not, no row and no header comes before it
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)


def test_a_recording_that_cannot_begin_leaves_no_file_and_spoils_none(tmp_path: Path) -> None:
    # GIVEN an older recording, and a name that is free
    older = tmp_path / "older"
    older.write_bytes(b"what was recorded")
    # WHEN both are recorded to in vain
    for path in (older, tmp_path / "new"):
        done = ipttrace("record", str(path), "--engine", "kernel")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)
    # THEN all is as before
    assert [path.name for path in tmp_path.iterdir()] == ["older"]
    assert older.read_bytes() == b"what was recorded"


def test_without_a_word_about_engines_it_traces_over_netlink_and_notes_why(tmp_path: Path) -> None:
    # WHEN nobody says with which engine
    done = ipttrace("record", str(tmp_path / "one"), "--duration", "0.1")
    # THEN it is the one that can run
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("engine=netlink"), done.stderr
    # AND what is recorded tells why
    frames = list(read_file(tmp_path / "one"))
    notes = [frame.json["text"] for frame in frames if frame.kind == Kind.NOTE]
    said = "tracing over netlink in this network namespace (--netns all: in every one)"
    assert f"{said}; no kernel engine: {REASON}" in notes
    # AND so it is where rows are printed
    done = ipttrace("print", "--duration", "0.1", "tcp port 80")
    assert done.returncode == 0, done.stderr
    told, summary = done.stderr.splitlines()
    assert told == f"ipttrace: {said}; no kernel engine: {REASON}"
    assert summary.endswith("engine=netlink")


def test_where_neither_engine_can_run_one_line_says_why_of_both() -> None:
    # GIVEN somebody whom the kernel lets do nothing
    drop = "--bounding-set=-net_admin", "--inh-caps=-net_admin"
    # WHEN he wants to trace
    argv = ["setpriv", *drop, sys.executable, "-m", "ipttrace", "print"]
    done = subprocess.run(
        ["unshare", "-n", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    # THEN one line says why not with either
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "needs CAP_NET_ADMIN" in line
    assert line.endswith(f"; the kernel engine cannot run: {REASON}")


def test_the_doctor_says_of_each_engine_whether_it_can_run() -> None:
    done = ipttrace("doctor")
    assert done.returncode == 0, done.stdout
    found = {" ".join(line.split()[:3]): line for line in done.stdout.splitlines()}
    assert f"no, because {REASON}" in found["fail engine: kernel"]
    assert "yes: iptables-nft, nftables" in found["ok engine: netlink"]
    assert not done.stderr
