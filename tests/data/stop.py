# SPDX-License-Identifier: GPL-2.0-only
"""A request to stop that a test sets by hand."""

from __future__ import annotations

from ipttrace.capture.signals import Stop


class StopFlag(Stop):
    """A Stop without signal handlers, so that it can be used in any thread."""

    def __init__(self) -> None:
        self.reason = ""
