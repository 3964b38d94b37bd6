# SPDX-License-Identifier: GPL-2.0-only
"""`-` as the name of a recording: it comes from stdin."""

from __future__ import annotations

import pty
import subprocess

import pytest

from tests import paths
from tests.program import PROGRAM


@pytest.mark.parametrize("command", [["export", "-"], ["replay", "-", "--format", "csv"]])
def test_a_recording_comes_from_a_pipe(command: list[str]) -> None:
    # GIVEN a recording, and what its export writes
    export = [PROGRAM, "export", str(paths.LAB)]
    expected = subprocess.run(export, capture_output=True, check=True)
    # WHEN the recording is piped in
    piped = subprocess.run([PROGRAM, *command], input=paths.LAB.read_bytes(), capture_output=True)
    # THEN the same rows and the same summary are written
    assert (piped.returncode, piped.stdout) == (0, expected.stdout)
    assert piped.stderr == expected.stderr


def test_a_terminal_has_no_recording() -> None:
    _primary, terminal = pty.openpty()
    ended = subprocess.run([PROGRAM, "export", "-"], stdin=terminal, capture_output=True)
    assert ended.returncode == 2
    assert b"refusing to read a recording from a terminal" in ended.stderr


def test_a_damaged_recording_is_called_by_its_name() -> None:
    ended = subprocess.run([PROGRAM, "export", "-"], input=b"", capture_output=True)
    assert (ended.returncode, ended.stderr) == (1, b"ipttrace: stdin: the stream is empty\n")
    ended = subprocess.run([PROGRAM, "export", "/dev/null"], capture_output=True)
    assert ended.stderr == b"ipttrace: /dev/null: the stream is empty\n"
