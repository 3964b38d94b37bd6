# SPDX-License-Identifier: GPL-2.0-only
"""A command imports only what it needs, each in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.cli.commands import COMMANDS
from tests.paths import DATA, LAB

# Runs a command and writes the names of all imported modules to a file.
SCRIPT = """
import sys
from ipttrace.cli import main
try:
    main(sys.argv[2:])
finally:
    with open(sys.argv[1], "w") as file:
        print(*sys.modules, file=file)
"""

SCREEN = {"textual", "rich", "ipttrace.tui"}
KERNEL = {"bcc", "pyroute2", "ipttrace.capture.kernel", "ipttrace.capture.netlink"}
ROWS = {"numpy", "lark", "ipttrace.trace", "ipttrace.view"}
LAB_VM = {"ipttrace.lab"}


def imported(folder: Path, *arguments: str, path: str = "") -> set[str]:
    """The modules that `ipttrace ARGUMENTS` has imported at its end, and their packages."""
    file = folder / "modules"
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
    )
    return set(file.read_text().split())


@pytest.mark.parametrize("command", ["", *(command.name for command in COMMANDS)])
@pytest.mark.parametrize("option", ["--help", "--version", "--no-such-option"])
def test_help_imports_nothing_heavy(command: str, option: str, tmp_path: Path) -> None:
    found = imported(tmp_path, *([command] if command else []), option)
    assert "ipttrace.cli" in found
    assert not found & (SCREEN | KERNEL | ROWS | LAB_VM | {"ipttrace.capture"})


@pytest.mark.parametrize("command", ["replay", "export"])
def test_a_recording_as_lines_needs_no_kernel_and_no_screen(command: str, tmp_path: Path) -> None:
    found = imported(tmp_path, command, str(LAB), "--format", "csv", "--query", "verdict=DROP")
    assert "ipttrace.trace.session" in found
    assert not found & (SCREEN | KERNEL | LAB_VM | {"ipttrace.capture"})


@pytest.mark.parametrize("command", ["print", "record"])
def test_a_tracing_command_leaves_the_kernel_to_its_agent(command: str, tmp_path: Path) -> None:
    # GIVEN an ssh that runs the command here, and an agent that plays a recording
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do command=$last; done\nexec sh -c "$command"\n')
    ssh.chmod(0o755)
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    (tmp_path / "id").chmod(0o755)
    far = shlex.join([sys.executable, str(DATA / "far_agent.py"), "far"])
    where = ["--ssh", "web1", "--remote-command", far, "--until", "verdict=DROP"]
    file = [str(tmp_path / "recording")] if command == "record" else []
    found = imported(tmp_path, command, *file, *where, "tcp", path=str(tmp_path))
    assert "ipttrace.trace.session" in found
    assert not found & (SCREEN | KERNEL | LAB_VM)


def test_the_agent_needs_no_screen_and_makes_no_rows(tmp_path: Path) -> None:
    found = imported(tmp_path, "agent", "--engine", "netlink", "--netns", "no-such")
    assert "ipttrace.capture.agent" in found
    assert not found & (SCREEN | LAB_VM | {"bcc", "lark", "ipttrace.view"})


def test_the_doctor_needs_no_screen(tmp_path: Path) -> None:
    found = imported(tmp_path, "doctor")
    assert "ipttrace.capture.doctor" in found
    assert not found & (SCREEN | ROWS - {"numpy"} | LAB_VM)


@pytest.mark.parametrize("command", [[], ["demo"], ["print"], ["record", "x"], ["agent"]])
def test_a_bad_expression_is_refused_before_anything_heavy(
    command: list[str], tmp_path: Path
) -> None:
    found = imported(tmp_path, *command, "tcp", "prot")
    assert not found & (SCREEN | KERNEL | ROWS | LAB_VM)


def test_the_screen_is_imported_for_a_terminal_only(tmp_path: Path) -> None:
    assert not imported(tmp_path) & SCREEN
