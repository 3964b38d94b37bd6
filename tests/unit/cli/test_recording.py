# SPDX-License-Identifier: GPL-2.0-only
"""The file that a stream is recorded to."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from ipttrace.cli import main
from tests.paths import DATA


def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a file on a disk that is full
    file = tmp_path / "a.iptr"
    file.symlink_to("/dev/full")
    # WHEN another host's stream is recorded to it
    (tmp_path / "ssh").write_text(
        '#!/bin/sh\nfor last; do command=$last; done\nexec sh -c "$command"\n'
    )
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    for name in ("ssh", "id"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    far = shlex.join([sys.executable, str(DATA / "far_agent.py"), "far"])
    assert main(["record", str(file), "--ssh", "web1", "--remote-command", far]) == 1
    # THEN the line says which file, and the summary follows
    lines = capsys.readouterr().err.splitlines()
    assert f"ipttrace: cannot write {file}: No space left on device" in lines
    assert not any("Errno" in line for line in lines)
