# SPDX-License-Identifier: GPL-2.0-only
"""Acts as an agent on another host: plays the recorded lab, then waits to be stopped.

``python far_agent.py NAME [agent's arguments …]``.  Its HELLO contains NAME as the
host, its process id and its arguments.  Needs no root.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, cast

from ipttrace.capture.control_line import ControlLine, parse
from ipttrace.stream.decoder import read_file
from ipttrace.stream.frames import Kind
from ipttrace.stream.messages import End, Hello
from ipttrace.stream.writer import Writer


class _Stdout:
    def write(self, data: bytes | memoryview, /) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(1, rest) :]


def main() -> None:
    writer = Writer(_Stdout())
    books: dict[str, Any] = {}
    for frame in read_file(Path(__file__).with_name("lab.iptr")):
        if frame.kind == Kind.HELLO:
            about = {"host": sys.argv[1], "pid": os.getpid(), "argv": sys.argv[2:]}
            writer.hello(cast(Hello, {**frame.json, **about}))
        elif frame.kind == Kind.END:
            books = frame.json
        else:
            writer.copy(frame)
    control = ControlLine(0)
    reason = ""
    while not reason:
        lines = control.lines()
        if lines is None:
            reason = "left alone"
        elif any(parse(line).name == "stop" for line in lines):
            reason = "stopped"
    writer.end(cast(End, {**books, "reason": reason}))


if __name__ == "__main__":
    # The reader has closed its end, which is how it leaves.
    with contextlib.suppress(BrokenPipeError):
        main()
