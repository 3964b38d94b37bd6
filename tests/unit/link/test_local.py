# SPDX-License-Identifier: GPL-2.0-only
"""An agent on this host that does not end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ipttrace.cli import main
from ipttrace.link import local


def test_ctrl_c_where_the_agent_of_sudo_does_not_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN an agent that has said all, does not end, and may not be killed, as it is root's
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\necho $$ > pid\nexec >&-\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "PATIENCE", 0.2)
    monkeypatch.setattr(local, "_CLEANUP", 0.2)
    monkeypatch.setattr(local, "_as_root", lambda argv: [str(program)])
    killed = subprocess.Popen.kill

    def refuse(process: subprocess.Popen[bytes]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(subprocess.Popen, "kill", refuse)
    # WHEN the command ends
    try:
        assert main(["print"]) == 1
    finally:
        pid = int(Path("pid").read_text())
        os.kill(pid, 9)
        monkeypatch.setattr(subprocess.Popen, "kill", killed)
        os.waitpid(pid, 0)
    # THEN one line says so, and what to do
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"ipttrace: the agent does not end: end it with sudo kill {pid}"
    )
