# SPDX-License-Identifier: GPL-2.0-only
"""Waits for descriptors of any number: select(2) knows only those below 1,024."""

from __future__ import annotations

import math
import select
from typing import Protocol


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def readable(*files: int | _HasFileno, timeout: float | None = None) -> list[int]:
    """Waits up to `timeout` s, without end if None, until one of `files` can be read.

    An end of file and an error count too.  Returns the descriptors that are ready.
    """
    return _ready(files, select.POLLIN, timeout)


def writable(file: int | _HasFileno, timeout: float | None = None) -> bool:
    """Waits up to `timeout` s, without end if None, until `file` can be written."""
    return bool(_ready((file,), select.POLLOUT, timeout))


def _ready(files: tuple[int | _HasFileno, ...], event: int, timeout: float | None) -> list[int]:
    poll = select.poll()
    for file in files:
        poll.register(file, event)
    return [fd for fd, _ in poll.poll(None if timeout is None else math.ceil(timeout * 1000))]
