# SPDX-License-Identifier: GPL-2.0-only
"""Starts an agent and holds both ends of it: the stream and the control line.

Where we are not root, sudo makes the agent root; nothing else of ipttrace ever
is.  Must not decode the stream.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, BinaryIO, Final, cast

STOP: Final = b'{"cmd":"stop"}\n'
PATIENCE: Final = 10.0


class LinkError(Exception):
    """The agent cannot be started; one line says why.

    `said`: the terminal shows that line already.
    """

    def __init__(self, text: str, *, said: bool = False) -> None:
        super().__init__(text)
        self.said = said


def program() -> list[str]:
    """The command that is this program, whatever the PATH is."""
    return [sys.executable, "-m", "ipttrace"]


def _as_root(argv: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return argv
    if shutil.which("sudo") and os.isatty(0):
        # Asked for now, while the terminal is still a terminal.
        if subprocess.call(["sudo", "-v"]) != 0:
            raise LinkError("tracing needs root, and sudo refused")
        return ["sudo", "--", *argv]
    raise LinkError("tracing needs root: run with sudo")


class AgentLink:
    """A running agent on this host."""

    def __init__(self, arguments: Sequence[str], stderr: IO[bytes] | None = None) -> None:
        """`arguments`: those of ``ipttrace agent``; `stderr`: where its words go."""
        argv = _as_root([*program(), "agent", "--control", *arguments])
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
        except OSError as error:
            raise LinkError(f"the agent cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.control = cast(BinaryIO, self._process.stdin)
        self.stream = cast(BinaryIO, self._process.stdout)

    def stop(self) -> None:
        """Asks it to end its stream in order."""
        with contextlib.suppress(OSError, ValueError):
            self.control.write(STOP)
            self.control.close()

    def close(self) -> int:
        """Waits for its end; its exit status, negative if a signal killed it."""
        with contextlib.suppress(OSError, ValueError):
            self.control.close()
        with contextlib.suppress(OSError, ValueError):
            self.stream.close()
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
