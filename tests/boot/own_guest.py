# SPDX-License-Identifier: GPL-2.0-only
"""Runs tests in a VM that boots for them alone.  Must not check what they check."""

from __future__ import annotations

import subprocess
import sys

from tests.paths import PROJECT


def pass_in_guest(series: str, tests: str, variable: str, *machine: str) -> None:
    """Runs the tests of a folder, which need an environment `variable`; they must pass.

    `machine`: further options of the VM.
    """
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += ["-W", "ignore::pytest.PytestConfigWarning", tests]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ipttrace.lab.vm", "--kernel", series, *machine, "--"),
            *("env", f"{variable}=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", *words),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
