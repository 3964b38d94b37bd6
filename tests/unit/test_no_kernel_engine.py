# SPDX-License-Identifier: GPL-2.0-only
"""The real commands on a kernel that cannot load modules: one clear line, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(Path("/proc/modules").exists(), reason="this kernel can load modules"),
    pytest.mark.skipif(os.geteuid() != 0, reason="without root the first reason is another"),
]

WHY = (
    f"ipttrace: kernel {os.uname().release} cannot load modules (CONFIG_MODULES is off):"
    " boot a kernel of the distribution, or ipttrace lab\n"
)


def ipttrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipttrace", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("print",),
        ("print", "--format", "csv", "tcp port 80"),
        ("print", "--engine", "kernel"),
        ("agent",),
    ],
    ids=" ".join,
)
def test_a_kernel_without_modules_is_one_line(arguments: tuple[str, ...]) -> None:
    # GIVEN a kernel without loadable modules
    # WHEN somebody wants to trace
    done = ipttrace(*arguments)
    # THEN one line says why not, no row and no header comes before it
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)


def test_a_recording_that_cannot_begin_leaves_no_file_and_spoils_none(tmp_path: Path) -> None:
    # GIVEN an older recording, and a name that is free
    older = tmp_path / "older"
    older.write_bytes(b"what was recorded")
    # WHEN both are recorded to in vain
    for path in (older, tmp_path / "new"):
        done = ipttrace("record", str(path))
        assert (done.returncode, done.stdout, done.stderr) == (1, "", WHY)
    # THEN all is as before
    assert [path.name for path in tmp_path.iterdir()] == ["older"]
    assert older.read_bytes() == b"what was recorded"


def test_the_doctor_says_the_same_and_fails() -> None:
    done = ipttrace("doctor")
    assert done.returncode == 1
    assert "cannot load modules (CONFIG_MODULES is off)" in done.stdout
    assert not done.stderr
