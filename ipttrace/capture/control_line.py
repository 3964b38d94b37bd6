# SPDX-License-Identifier: GPL-2.0-only
"""The control line: one JSON object a line, from whoever reads the stream.

``{"cmd": "filter", "expr": "tcp port 80"}``, ``{"cmd": "disarm"}``,
``{"cmd": "arm"}``, ``{"cmd": "stop"}``.  The end of the line means stop, so that
an agent never outlives who started it.  Only reads and understands: must not
carry anything out.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from ipttrace.capture.errors import CaptureError

COMMANDS: Final = ("filter", "disarm", "arm", "stop")
_LONGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """One of COMMANDS; `expr` is that of a filter."""

    name: str
    expr: str = ""


def parse(line: bytes) -> Order:
    """The order on a line.  Raises CaptureError, one line."""
    try:
        said = json.loads(line)
        name = said["cmd"]
        expr = said["expr"] if name == "filter" else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CaptureError("a line on the control line is no command") from None
    if name not in COMMANDS:
        raise CaptureError(f"unknown command on the control line: {str(name)[:40]!r}")
    if not isinstance(expr, str):
        raise CaptureError("a filter on the control line is no text")
    return Order(name, expr)


class ControlLine:
    """The lines that come on a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""

    def lines(self) -> list[bytes] | None:
        """Those that have come; None: it has ended.  To be called when there is something.

        Raises CaptureError where a line has no end, and OSError.
        """
        data = os.read(self.fd, 65536)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise CaptureError("the control line has no end")
        return [line for line in lines if line.strip()]
