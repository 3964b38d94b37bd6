# SPDX-License-Identifier: GPL-2.0-only
"""A plugin of pytest: writes down which test begins, and how each of its phases ends, at once.

Of a guest that dies this is all that remains.  First it inserts the module and removes it: a
module that the kernel refuses would make every test fail, which shows nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

VARIABLE: Final = "IPTTRACE_OUTCOMES"
"""The environment variable that names the file to write."""


def _write(**line: str) -> None:
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_sessionstart() -> None:
    from ipttrace.capture.errors import CaptureError
    from ipttrace.capture.kernel import module as kmod

    try:
        kmod.insert(kmod.find_or_build())
        kmod.remove()
    except CaptureError as error:
        pytest.exit(f"the module cannot be used: {error}", returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, phase="begin", outcome="", why="")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    why = ""
    if not report.passed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else report.longreprtext
    _write(test=report.nodeid, phase=str(report.when), outcome=report.outcome, why=why)
