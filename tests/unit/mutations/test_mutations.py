# SPDX-License-Identifier: GPL-2.0-only
"""A line for each fault; only a fault that each of its tests notices is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipttrace.lab.kernels import Kernel
from tests.mutations import __main__ as command
from tests.mutations import guest
from tests.mutations.fault import Fault
from tests.mutations.verdict import Verdict

FAULT = Fault(name="x", file="x.c", text="good;", instead="bad;", tests=("a.py::t", "a.py::u"))
FAILED, PASSED, BROKEN = Verdict(True, "assert 1 == 2"), Verdict(False), Verdict(None, "no boot")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a project with one file; logs go to a folder of the test's."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "x.c").write_text("good;\n")
    monkeypatch.setattr(command, "LOGS", tmp_path)
    monkeypatch.setattr(guest, "present", lambda series: Kernel("6.12.1", tmp_path))
    return folder


def result(
    base: Path, monkeypatch: pytest.MonkeyPatch, verdicts: list[Verdict]
) -> tuple[bool, list[str]]:
    """Whether it is noticed if its tests end so, and the sources that each of them met."""
    sources = []

    def run(
        kernel: Kernel, copy: Path, cache: Path, tests: list[str], log: Path, *, kills: bool
    ) -> list[Verdict]:
        sources.append((copy / "x.c").read_text())
        return [verdicts[FAULT.tests.index(test)] for test in tests]

    monkeypatch.setattr(guest, "run", run)
    return command.noticed(FAULT, base, base.parent / "cache"), sources


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        ([FAILED, FAILED], "noticed x N s: assert 1 == 2; assert 1 == 2"),
        ([FAILED, PASSED], "NOT NOTICED x N s: u passed"),
        ([PASSED, PASSED], "NOT NOTICED x N s: t passed; u passed"),
        ([FAILED, BROKEN], "could not run x N s: u no boot"),
        ([PASSED, BROKEN], "could not run x N s: u no boot"),
    ],
)
def test_each_test_must_fail(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verdicts: list[Verdict],
    line: str,
) -> None:
    noticed, sources = result(base, monkeypatch, verdicts)
    words = " ".join(capsys.readouterr().out.split())
    assert re.sub(r"\d+ s:", "N s:", words) == line
    assert noticed == line.startswith("noticed")
    # AND each has met the fault, which the next fault's copy does not have
    assert sources == ["bad;\n"] * 2
    assert (base / "x.c").read_text() == "good;\n"


def test_a_fault_that_does_not_fit_runs_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "x.c").write_text("other;\n")
    assert result(base, monkeypatch, []) == (False, [])
    words = " ".join(capsys.readouterr().out.split())
    assert words == "cannot be applied x its text occurs 0 times in x.c"


def test_a_fault_of_a_kernel_that_is_not_there_could_not_run(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest, "present", lambda series: None)
    assert result(base, monkeypatch, []) == (False, [])
    assert capsys.readouterr().out.startswith("could not run ")
