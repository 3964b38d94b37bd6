# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace.tui FILE`: shows a recorded stream, for development of the screen.

`-` reads the stream from standard input; keys then come from /dev/tty.
"""

from __future__ import annotations

import os
import sys

from ipttrace.tui.app import TraceApp
from ipttrace.tui.feed import FileSource, Source, StreamSource


def main(arguments: list[str]) -> int:
    """Shows the stream that `arguments` names.  Returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m ipttrace.tui FILE", file=sys.stderr)
        return 2
    source: Source
    try:
        if arguments[0] == "-":
            stream = os.fdopen(os.dup(0), "rb", buffering=0)
            terminal = os.open("/dev/tty", os.O_RDWR)
            os.dup2(terminal, 0)
            os.close(terminal)
            source = StreamSource(stream, name="standard input")
        else:
            source = FileSource(arguments[0])
    except OSError as error:
        print(f"ipttrace: {arguments[0]}: {error.strerror}", file=sys.stderr)
        return 1
    app = TraceApp(source, title=source.name)
    summary = app.run()
    if summary is None:
        return 1
    if summary["error"]:
        print(f"ipttrace: {summary['error']}", file=sys.stderr)
    shown = ("rows", "records", "lost", "missed", "engine")
    print(" ".join(f"{name}={summary.get(name)}" for name in shown), file=sys.stderr)
    return app.return_code or (1 if summary["error"] else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
