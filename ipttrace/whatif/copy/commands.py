# SPDX-License-Identifier: GPL-2.0-only
"""Programs in the copy: no shell, no children, bounded in time, memory and output."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ipttrace.namespaces import die_with
from ipttrace.text import clean
from ipttrace.whatif.errors import WhatIfError

PATIENCE: Final = 30.0  # s
_MOST: Final = 16 << 20  # bytes of output
_MEMORY: Final = 4 << 30  # bytes
_FOLDERS: Final = "/usr/sbin:/sbin:/usr/local/sbin"
_ENVIRONMENT: Final = {"PATH": f"{_FOLDERS}:/usr/bin:/bin", "LC_ALL": "C", "HOME": "/"}


@dataclass(frozen=True, slots=True)
class Done:
    """A finished program: its exit status, negative if a signal ended it, and its output."""

    status: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Why it failed, on one line."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("#", "Try `", "Error occurred"))]
        return clean(lines[0], 200) if lines else f"status {self.status}"


def find(name: str) -> str | None:
    """Returns the path of a program, None if it is not installed."""
    return shutil.which(name, path=os.environ.get("PATH", "")) or shutil.which(name, path=_FOLDERS)


def run(argv: Sequence[str], text: str = "", patience: float = PATIENCE) -> Done:
    """Runs a program with `text` on its stdin.  Raises WhatIfError if it cannot run or hangs."""
    name = argv[0]
    path = find(name)
    if path is None:
        raise WhatIfError(f"{name} is not installed on this host")
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output:
        stdin.write(text.encode("utf-8", "surrogateescape"))
        stdin.seek(0)
        with tempfile.TemporaryFile() as errors:
            try:
                # One thread, so that a function may run in the child.
                process = subprocess.Popen(
                    [path, *argv[1:]],
                    stdin=stdin,
                    stdout=output,
                    stderr=errors,
                    env={**_ENVIRONMENT, **_libraries()},
                    cwd="/",
                    preexec_fn=_limit,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise WhatIfError(f"cannot run {name}: {clean(str(error), 100)}") from None
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise WhatIfError(f"{name} did not end within {patience:.0f} s") from None
            return Done(process.returncode, _text(output), _text(errors))


def _libraries() -> dict[str, str]:
    """The folder of libraries that the user has set: programs outside the system may need it."""
    found = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": found} if found else {}


def _limit() -> None:
    die_with(os.getppid())
    # No program that a rules file names can be started.
    for kind, most in (
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, _MOST * 16),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _text(file: object) -> str:
    data = os.pread(file.fileno(), _MOST, 0)  # type: ignore[attr-defined]
    return data.decode("utf-8", "surrogateescape")
