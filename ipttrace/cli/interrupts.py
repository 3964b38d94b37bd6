# SPDX-License-Identifier: GPL-2.0-only
"""Ctrl-C while an agent runs and its stream is not read yet: it waits for the reader.

Otherwise a command that is still importing what it needs would end without its summary, though
its agent has traced.  Must not be entered before processes that keep a signal mask are started.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held() -> Iterator[None]:
    """Holds SIGINT and SIGTERM until `release`, or the end of the context."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        release()


def release() -> None:
    """Lets those through that have come, too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
