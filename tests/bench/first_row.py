# SPDX-License-Identifier: GPL-2.0-only
"""The time until a command prints its first row."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any


def first_row(*words: str) -> float:
    """Returns the seconds until `ipttrace WORDS` prints a row, then ends it."""
    began = time.monotonic()
    argv: list[str] = [sys.executable, "-m", "ipttrace", *words, "--text", "--duration", "30"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        out: Any = child.stdout
        out.readline()  # titles
        row = out.readline()
        took = time.monotonic() - began
        child.terminate()
        out.read()
    if not row:
        raise SystemExit(f"no row: ipttrace {' '.join(words)}")
    return took
