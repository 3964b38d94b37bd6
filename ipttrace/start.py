# SPDX-License-Identifier: GPL-2.0-only
"""Starts another Python of this package, which may run as root.

`python -m` would import from the current directory first: any user who can write there
would run code as root.  Here only the folder that this package lies in is added to
Python's own path, so that a checkout starts itself and not what is installed beside it.

The file is also the program that is started.  Must import only Python's own modules.
"""

from __future__ import annotations

import os
import runpy
import sys

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python(module: str) -> list[str]:
    """The first words of a command that runs `module` as ``python -m`` would."""
    return [sys.executable, "-P", os.path.abspath(__file__), module]


def forget_current_folder() -> None:
    """Takes back what ``python -m`` put at the front of the path, unless the package is there."""
    if sys.flags.safe_path or not sys.path:
        return
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if sys.path[0] == here != _PACKAGES:
        del sys.path[0]


if __name__ == "__main__":
    if _PACKAGES not in sys.path:
        sys.path.insert(0, _PACKAGES)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
