# SPDX-License-Identifier: GPL-2.0-only
"""Faults get into copies of the project, which have what a clone has and what was built."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.mutations import checkout
from tests.mutations.checkout import CheckoutError, copy_of, copy_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with tracked files, one of them changed and one deleted since, and another."""
    folder = tmp_path / "project"
    for name in ("kmod/one.c", "gone.c", "build/one.o", ".venv/bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("as committed")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "add", "kmod", "gone.c"], check=True)
    (folder / "kmod" / "one.c").write_text("as it is now")
    (folder / "gone.c").unlink()
    (folder / "notes").write_text("untracked")
    monkeypatch.setattr(checkout, "PROJECT", folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_copy_has_the_tracked_files_as_they_are_now(project: Path, tmp_path: Path) -> None:
    copy_project(tmp_path / "base")
    with copy_of(tmp_path / "base") as copy:
        assert files(copy) == {"kmod/one.c"}
        assert (copy / "kmod" / "one.c").read_text() == "as it is now"
        # AND what was built can be reached
        assert (copy / "build" / "one.o").exists()
        assert (copy / ".venv").resolve() == project / ".venv"
        # WHEN it is changed, THEN neither the project nor the next copy is
        (copy / "kmod" / "one.c").write_text("with a fault")
    assert not copy.exists()
    assert (project / "kmod" / "one.c").read_text() == "as it is now"
    assert (tmp_path / "base" / "kmod" / "one.c").read_text() == "as it is now"


def test_without_a_set_up_the_error_names_what_is_missing(project: Path, tmp_path: Path) -> None:
    (project / "build").rename(project / "built")
    with pytest.raises(CheckoutError, match=r"build is missing: make setup$"):
        copy_project(tmp_path / "base")


def test_outside_of_git_the_error_is_gits(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (project / ".git").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckoutError, match=r"^git cannot list the files: fatal: not a git"):
        copy_project(tmp_path / "base")
