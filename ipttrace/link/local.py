# SPDX-License-Identifier: GPL-2.0-only
"""An agent on this host.

If this process is not root, sudo makes the agent root; nothing else of ipttrace ever
is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
from collections.abc import Sequence
from typing import IO, BinaryIO, Final, cast

from ipttrace.link.base import PATIENCE, Link, LinkError
from ipttrace.start import python

# s, for an agent whose stream has ended to remove what it has added to the host.
_CLEANUP: Final = 30.0


class LocalLink(Link):
    """A running agent on this host."""

    def __init__(self, arguments: Sequence[str], stderr: IO[bytes] | None = None) -> None:
        """Starts the agent.  Raises LinkError.

        `arguments`: those of ``ipttrace agent``; `stderr`: where its stderr goes.
        """
        # This program, whatever the PATH is.
        argv = _as_root([*python("ipttrace"), "agent", "--control", *arguments])
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
            )
        except OSError as error:
            raise LinkError(f"cannot start the agent: {error}") from error
        self.control = cast(BinaryIO, self._process.stdin)
        self.stream = cast(BinaryIO, self._process.stdout)

    def close(self) -> int:
        """Waits for the agent's end; returns its exit status, negative if a signal killed it.

        An agent whose stream still moves is not killed.  Raises LinkError if it neither ends
        nor can be killed, as an agent of sudo's.
        """
        self.stop()
        self._drain()
        self.close_ends()
        try:
            return self._process.wait(_CLEANUP)
        except subprocess.TimeoutExpired:
            pass
        try:
            self._process.kill()
            return self._process.wait(PATIENCE)
        except (PermissionError, subprocess.TimeoutExpired):
            raise LinkError(
                f"the agent does not end: end it with sudo kill {self._process.pid}"
            ) from None

    def _drain(self) -> None:
        """Reads the rest of the stream, until nothing has come for PATIENCE."""
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(self.stream.fileno(), select.POLLIN)
            while poll.poll(1000 * PATIENCE) and os.read(self.stream.fileno(), 1 << 16):
                pass


def _as_root(argv: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return argv
    if shutil.which("sudo") and os.isatty(0):
        # The password is asked for now, before the screen takes the terminal.
        if subprocess.call(["sudo", "-v"]) != 0:
            raise LinkError("tracing needs root, and sudo failed")
        return ["sudo", "--", *argv]
    raise LinkError("tracing needs root: run with sudo")
