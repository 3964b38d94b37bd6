# SPDX-License-Identifier: GPL-2.0-only
"""Standard descriptors that were closed when the program started.

The next file opened would get a closed descriptor's number, and what is meant for
stderr would be written into it.  Must not import anything else of ipttrace.
"""

from __future__ import annotations

import io
import os
import sys

from ipttrace.cli.outcome import Failed


def fill_closed() -> None:
    """Opens 0, 1 and 2 where they are closed.

    Reading from stdin then ends at once, and what is printed to stdout or stderr is
    dropped.  Bytes written to descriptor 1 itself fail: rows must not vanish unnoticed.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor, flags)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    if sys.stdout is None:
        sys.stdout = _null_text()
    if sys.stderr is None:
        sys.stderr = _null_text()


def _null_text() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8")


def _open_null(descriptor: int, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


def check_stdout() -> None:
    """Raises Failed if nothing can be written to stdout."""
    try:
        os.write(1, b"")
    except OSError as reason:
        raise Failed(f"cannot write to stdout: {reason.strerror}") from None
