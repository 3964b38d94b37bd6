# SPDX-License-Identifier: GPL-2.0-only
"""The module builds for each kernel of the lab without a warning of gcc or sparse."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ipttrace.lab import kernels
from tests.paths import PROJECT


@pytest.mark.parametrize("series", kernels.SERIES)
def test_the_module_builds_without_warnings(series: str, tmp_path: Path) -> None:
    kernel = kernels.find(series)
    if kernel is None:
        pytest.skip(f"Linux {series} is not in the cache: make setup")
    # GIVEN a copy of the sources
    for folder in ("kmod", "bpf"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    # WHEN they are built with extra warnings and sparse
    done = subprocess.run(
        ["make", "-C", kernel.headers, f"M={tmp_path}/kmod", "W=1", "C=1", "modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    # THEN there is a module and no warning
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kmod" / "ipttrace.ko").exists()
    output = (done.stdout + done.stderr).splitlines()
    assert any("CHECK" in line for line in output) or shutil.which("sparse") is None
    warnings = [line for line in output if "warning:" in line or "error:" in line]
    assert not warnings
