# SPDX-License-Identifier: GPL-2.0-only
"""Runs tests of a copy of the project in the lab VM, with the module of that copy.

The module is built into a cache of its own: one with a fault must never be in the user's.
With a fault, each test has a guest of its own: none meets what another's failure has left.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import DEBUG, Kernel, KernelError, debug, find
from ipttrace.lab.vm.machine import BOOT_LIMIT, CRASH, Machine, MachineError
from tests.mutations.checkout import PYTEST
from tests.mutations.outcomes import VARIABLE
from tests.mutations.verdict import Verdict, judge, read

LIMIT: Final = 1800.0
"""Seconds within which a test must end: no test needs them, one that hangs does."""
SLOWER: Final = 4  # times, a debug kernel
ALONE: Final = ("tests/vm/patching/", "tests/vm/stress/")


def present(series: str) -> Kernel | None:
    """The kernel, if it is in the cache and, for the debug kernel, has today's options."""
    kernel = find(series)
    if kernel is not None and series == DEBUG and not debug.is_current(kernel):
        return None
    return kernel


def alone(test: str) -> bool:
    """Whether the test needs a guest whose CPUs are emulated in one thread."""
    return test.startswith(ALONE)


def run(
    kernel: Kernel,
    copy: Path,
    cache: Path,
    tests: Sequence[str],
    log: Path,
    *,
    kills: bool = False,
) -> list[Verdict]:
    """Runs the tests in one guest; returns the verdict on each, in their order.

    `kills`: whether a test fails if the guest dies in it; what pytest prints, and the kernel's
    console, go to the file `log`.
    """
    try:
        kmod.build(kernel.headers, kernel.release, copy, cache)
    except CaptureError as error:
        return [Verdict(None, str(error)) for _ in tests]
    slow = SLOWER if kernel.root.name == DEBUG else 1
    status, why = None, ""
    with tempfile.TemporaryDirectory(prefix="share-", dir=cache.parent) as folder:
        outcomes = Path(folder) / "outcomes"
        outcomes.touch()
        log.unlink(missing_ok=True)
        with log.open("ab") as output:
            machine = Machine(
                kernel,
                [sys.executable, *PYTEST, "-p", "tests.mutations.outcomes", "-q", *tests],
                share=Path(folder),
                log=log,
                cwd=copy,
                env=_environment(copy, cache, outcomes),
                stdout=output,
                stderr=output,
                one_thread=kernel.root.name == DEBUG or any(map(alone, tests)),
                boot_limit=BOOT_LIMIT * slow,
                progress=lambda text: None,
            )
            try:
                with machine:
                    machine.start()
                    status = machine.wait(LIMIT * slow * len(tests))
            except (MachineError, KernelError, TimeoutError) as error:
                why = str(error).splitlines()[0]
        lines = read(outcomes.read_text())
    crash = next((line for line in machine.console.splitlines() if CRASH.search(line)), "")
    death = crash if kills else ""
    return [judge(test, lines, status, death, crash or why) for test in tests]


def _environment(copy: Path, cache: Path, outcomes: Path) -> dict[str, str]:
    return {
        "IPTTRACE_CACHE": str(cache),
        "IPTTRACE_PATCHING": "1",
        "IPTTRACE_STRESS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(copy),
        VARIABLE: str(outcomes),
    }
