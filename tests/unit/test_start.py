# SPDX-License-Identifier: GPL-2.0-only
"""Where the user stands does not matter: no Python of ours imports from there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.link.local import LocalLink
from ipttrace.start import python
from tests.paths import DATA, PROJECT
from tests.program import PROGRAM

LAB = str(DATA / "lab.iptr")
NAMES = ("numpy", "argparse", "json", "runpy", "lark", "pyroute2", "ipttrace", "bcc", "re2")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with modules in it that leave a file `ran` when imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    ran = tmp_path / "ran"
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # this package, whatever is installed
    return ran


def _agents_output() -> bytes:
    link = LocalLink(["--help"])
    text = link.stream.read(1 << 16)
    assert link.close() == 0
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_numpy_py_where_the_user_stands_is_not_run_by_the_agent(hostile: Path) -> None:
    assert b"--control" in _agents_output()
    assert not hostile.exists(), hostile.read_text()


def test_a_numpy_py_where_the_user_stands_is_not_run_by_the_agent_that_sudo_starts(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\n[ "$1" = -v ] && exit\n[ "$1" = -- ] && shift && exec "$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sudo.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert b"--control" in _agents_output()
    assert not hostile.exists(), hostile.read_text()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("ipttrace", ["replay", LAB]), ("ipttrace.lab.traffic", ["--help"])],
)
def test_a_started_python_imports_nothing_from_where_the_user_stands(
    hostile: Path, module: str, arguments: list[str]
) -> None:
    done = subprocess.run([*python(module), *arguments], capture_output=True, text=True)
    assert (done.returncode, hostile.exists()) == (0, False), done.stderr


def test_the_command_imports_nothing_from_where_the_user_stands(hostile: Path) -> None:
    done = subprocess.run([PROGRAM, "replay", LAB], capture_output=True, text=True)
    assert (done.returncode, hostile.exists()) == (0, False), done.stderr


def test_a_numpy_py_beside_the_user_is_not_run_by_python_m_ipttrace(hostile: Path) -> None:
    # Python's own -m finds these first: who starts the program so has chosen the folder.
    for name in ("argparse", "json", "runpy", "ipttrace"):
        Path(f"{name}.py").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "ipttrace", "replay", LAB], capture_output=True, text=True
    )
    assert (done.returncode, hostile.exists()) == (0, False), done.stderr


def test_a_started_python_runs_the_package_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import ipttrace; print(ipttrace.__file__)"
    command = python("ipttrace.probe")
    copy = tmp_path / "checkout" / "ipttrace"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    (copy / "probe.py").write_text(code)
    (copy / "start.py").write_bytes((PROJECT / "ipttrace" / "start.py").read_bytes())
    command[2] = str(copy / "start.py")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{copy / '__init__.py'}\n"


@pytest.mark.parametrize("file", sorted((PROJECT / "ipttrace").rglob("*.py")), ids=str)
def test_every_python_is_started_safely(file: Path) -> None:
    """Each list of words that begins with sys.executable has -P or -I next."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.List | ast.Tuple):
            words = [ast.unparse(word) for word in node.elts]
            if "sys.executable" in words:
                behind = words[words.index("sys.executable") + 1]
                assert behind in ("'-P'", "'-I'"), f"line {node.lineno}"
