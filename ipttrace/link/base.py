# SPDX-License-Identifier: GPL-2.0-only
"""What both kinds of link share: the two ends, the stop command, the error."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import BinaryIO, Final

STOP: Final = b'{"cmd":"stop"}\n'
PATIENCE: Final = 10.0  # s, for an agent that was asked to end


class LinkError(Exception):
    """The agent cannot be started; the message is one line.

    `printed`: the user has seen that line already.
    """

    def __init__(self, text: str, *, printed: bool = False) -> None:
        super().__init__(text)
        self.printed = printed


class Link(ABC):
    """A running agent."""

    control: BinaryIO
    stream: BinaryIO

    def stop(self) -> None:
        """Asks the agent to end its stream in order."""
        with contextlib.suppress(OSError, ValueError):
            self.control.write(STOP)
            self.control.close()

    @abstractmethod
    def close(self) -> int:
        """Waits for the agent's end; returns its exit status."""

    def close_ends(self) -> None:
        """Closes the control line, which ends the agent, and the stream."""
        for end in (self.control, self.stream):
            with contextlib.suppress(OSError, ValueError):
                end.close()
