# SPDX-License-Identifier: GPL-2.0-only
"""The control line: commands to the agent from the reader of its stream, one JSON object a line.

``{"cmd": "filter", "expr": "tcp port 80"}``, ``{"cmd": "disarm"}``, ``{"cmd": "arm"}``,
``{"cmd": "stations", "on": true}``, ``{"cmd": "sockets", "on": true}``, ``{"cmd": "stop"}``.  End
of file means stop, so that an agent never outlives the process that started it.  Reads and
parses only: must not carry out a command.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from ipttrace.capture.errors import CaptureError

COMMANDS: Final = ("filter", "disarm", "arm", "stations", "sockets", "stop")
_SWITCHES: Final = ("stations", "sockets")
_LONGEST: Final = 1 << 20  # bytes of a line


@dataclass(frozen=True, slots=True)
class Command:
    """One of COMMANDS; `expr`: the new filter expression of "filter"; `on`: of a switch."""

    name: str
    expr: str = ""
    on: bool = False


def parse(line: bytes) -> Command:
    """Returns the command on a line.  Raises CaptureError, one line."""
    try:
        value = json.loads(line)
        name = value["cmd"]
        expr = value["expr"] if name == "filter" else ""
        on = value["on"] if name in _SWITCHES else False
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CaptureError("malformed command on the control line") from None
    if name not in COMMANDS:
        raise CaptureError(f"unknown command on the control line: {str(name)[:40]!r}")
    if not isinstance(expr, str):
        raise CaptureError("the filter on the control line is not a string")
    if not isinstance(on, bool):
        raise CaptureError(f"{name} on the control line are neither true nor false")
    return Command(name, expr, on)


class ControlLine:
    """The lines that arrive on a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""

    def lines(self) -> list[bytes] | None:
        """Returns the complete lines that have arrived, None at end of file.

        Blocks unless the descriptor is readable.  Raises CaptureError if a line is too
        long, OSError.
        """
        data = os.read(self.fd, 65536)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise CaptureError(f"a line on the control line is longer than {_LONGEST:,} bytes")
        return [line for line in lines if line.strip()]
