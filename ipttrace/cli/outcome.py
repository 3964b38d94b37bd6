# SPDX-License-Identifier: GPL-2.0-only
"""How a command ends: its error lines and its exit status.

Must not import anything else of ipttrace.
"""

from __future__ import annotations

import sys
from typing import IO, Final

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130


class BadUsage(Exception):
    """The command line cannot be carried out; the message goes to stderr, exit status 2."""


class Failed(Exception):
    """The job failed; the message goes to stderr, exit status 1."""


def error(text: str) -> None:
    """Prints an error to stderr."""
    print(f"ipttrace: {text}", file=sys.stderr)


def exit_status(own: int, agent: int, *, armed: bool) -> int:
    """Returns the exit status of a command from its own and its agent's.

    `agent` is negative if a signal killed the agent; `armed`: the stream began.
    """
    if agent < 0:
        error("the agent was killed")
        return FAILED
    if own == FAILED and not armed:
        return agent or FAILED
    return own or (agent if agent != INTERRUPTED else DONE)


def print_kept(stderr: IO[bytes]) -> int:
    """Prints what an agent wrote to `stderr` while the screen was up.

    Returns FAILED if there was anything.
    """
    stderr.seek(0)
    text = stderr.read().decode(errors="replace").strip()
    if text:
        print(text, file=sys.stderr)
    return FAILED if text else DONE
