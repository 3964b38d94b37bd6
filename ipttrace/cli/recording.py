# SPDX-License-Identifier: GPL-2.0-only
"""The file that a stream is recorded to."""

from __future__ import annotations

import contextlib
import os

from ipttrace.cli.outcome import Failed
from ipttrace.files import create


class Recording:
    """A file that keeps its old contents until the first byte is written.

    The path ``-`` is stdout.
    """

    def __init__(self, path: str) -> None:
        """Opens the file.  Raises Failed."""
        self._path = path
        self._begun = path == "-"
        self._new = not self._begun and not os.path.lexists(path)
        try:
            self._fd = os.dup(1) if self._begun else create(path)
        except OSError as reason:
            raise Failed(f"{path}: {reason.strerror}") from None

    def _failed(self, reason: OSError) -> Failed:
        name = "stdout" if self._path == "-" else self._path
        return Failed(f"cannot write {name}: {reason.strerror}")

    def write(self, data: bytes, /) -> None:
        """Writes all of `data`.  Raises Failed, which names the file."""
        try:
            self._write(data)
        except OSError as reason:
            raise self._failed(reason) from None

    def _write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            with contextlib.suppress(OSError):  # a pipe or a device
                os.ftruncate(self._fd, 0)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        """Closes the file; removes it if it is new and nothing was written.  Raises Failed."""
        try:
            os.close(self._fd)
        except OSError as reason:  # network file systems report a full disk only here
            raise self._failed(reason) from None
        if self._new and not self._begun:
            os.unlink(self._path)
