# SPDX-License-Identifier: GPL-2.0-only
"""Temporary copies of the project, as a clone has them, with what was built.

Files are copied as they are now, committed or not; those that git does not track are left out.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.paths import PROJECT

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning")
# So that tests are collected which run only in the VM, only alone, or only on a debug kernel.
WANTED = {"IPTTRACE_GUEST": "1", "IPTTRACE_PATCHING": "1", "IPTTRACE_STRESS": "1"}


class CheckoutError(Exception):
    """There is no copy with which a test could run; the text gives the reason."""


def copy_project(to: Path) -> None:
    """Copies the tracked files, and what was built, to the folder `to`.  Raises CheckoutError."""
    done = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-z"], capture_output=True, text=True
    )
    if done.returncode:
        raise CheckoutError(f"git cannot list the files: {done.stderr.strip()}")
    for name in filter(None, done.stdout.split("\0")):
        source, copy = PROJECT / name, to / name
        if source.is_symlink() or source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    for name in ("build", ".venv"):
        if not (PROJECT / name).exists():
            raise CheckoutError(f"{PROJECT / name} is missing: make setup")
        (to / name).symlink_to((PROJECT / name).resolve())


def prepare(folder: Path, tests: Sequence[str]) -> None:
    """Leaves bytecode of all that these tests import, which would take a guest minutes.

    Collects them for that.  Raises CheckoutError if one of them does not exist.
    """
    compileall.compile_dir(folder / "ipttrace", quiet=2)
    environment = {**os.environ, **WANTED, "PYTHONPATH": str(folder)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *PYTEST, "-q", "-q", "--collect-only", *tests],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    if done.returncode:
        raise CheckoutError(f"the tests cannot be collected:\n{done.stdout}{done.stderr}".rstrip())


@contextlib.contextmanager
def copy_of(base: Path) -> Iterator[Path]:
    """A copy of the copy `base`, bytecode included; removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="with-fault-", dir=base.parent) as folder:
        copy = Path(folder) / "project"
        shutil.copytree(base, copy, symlinks=True)
        yield copy
