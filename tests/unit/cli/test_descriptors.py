# SPDX-License-Identifier: GPL-2.0-only
"""Standard descriptors that are closed when the program starts.

An error line or silence, never one file's content in another, and never a traceback.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import paths
from tests.program import PROGRAM

EXPORT = f"{PROGRAM} export {paths.LAB} --format csv"
NO_STDOUT = "ipttrace: cannot write to stdout: Bad file descriptor\n"


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_summary_does_not_end_up_in_the_rows_when_stderr_is_closed(tmp_path: Path) -> None:
    # GIVEN what an export writes otherwise
    whole = run(EXPORT, tmp_path).stdout
    # WHEN stderr, stdin, or both are closed at the start
    for closed in ("2>&-", "<&-", "<&- 2>&-"):
        ended = run(f"{EXPORT} {closed}", tmp_path)
        # THEN the rows are the same, and nothing else is in them
        assert (ended.returncode, ended.stdout) == (0, whole)


def test_an_error_is_not_written_into_a_file_when_stderr_is_closed(tmp_path: Path) -> None:
    ended = run(f"{PROGRAM} record trace.iptr --engine netlink tcp prot 2>&-", tmp_path)
    assert ended.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        EXPORT,
        f"{PROGRAM} replay {paths.LAB} --format text",
        f"{PROGRAM} print --duration 1",
        f"{PROGRAM} demo --text",
        f"{PROGRAM} agent",
    ],
)
def test_rows_without_a_stdout_are_an_error(command: str, tmp_path: Path) -> None:
    ended = run(f"{command} >&-", tmp_path)
    assert (ended.returncode, ended.stderr) == (1, NO_STDOUT)


@pytest.mark.parametrize("command", ["--version", "--help", "doctor"])
def test_words_without_a_stdout_are_silence(command: str, tmp_path: Path) -> None:
    ended = run(f"{PROGRAM} {command} >&-", tmp_path)
    assert ended.returncode in (0, 1)  # doctor: something is missing here
    assert "Traceback" not in ended.stderr


def test_nothing_but_the_exit_status_tells_when_all_are_closed(tmp_path: Path) -> None:
    assert run(f"{EXPORT} <&- >&- 2>&-", tmp_path).returncode == 1
    assert run(f"{PROGRAM} <&- >&- 2>&-", tmp_path).returncode == 2
