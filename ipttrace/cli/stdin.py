# SPDX-License-Identifier: GPL-2.0-only
"""A recording from stdin, which the file name ``-`` means."""

from __future__ import annotations

import os
from typing import BinaryIO, Final

from ipttrace.cli.outcome import BadUsage

DASH: Final = "-"
_TERMINAL: Final = "/dev/tty"


def open_recording(file: str) -> BinaryIO:
    """Opens a recording for reading, unbuffered.  Raises OSError, and BadUsage for a terminal."""
    if file != DASH:
        return open(file, "rb", buffering=0)
    if os.isatty(0):
        raise BadUsage("refusing to read a recording from a terminal; redirect stdin")
    return os.fdopen(os.dup(0), "rb", buffering=0)


def has_keys(file: str) -> bool:
    """Whether there is a terminal to read keys from while `file` is read."""
    if file != DASH:
        return os.isatty(0)
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC))
    except OSError:  # no controlling terminal
        return False
    return True


def open_with_keys() -> BinaryIO:
    """Opens the recording on stdin, and makes the terminal stdin, for keys.

    Raises OSError, and BadUsage if stdin is a terminal.
    """
    recording = open_recording(DASH)
    terminal = os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(terminal, 0)
    os.close(terminal)
    return recording
