# SPDX-License-Identifier: GPL-2.0-only
"""Runs the tools that unpack and prepare kernels.

Must not import anything of the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from ipttrace.lab.kernels.error import KernelError


def tool(name: str) -> str:
    """Returns the path of a system tool: an ordinary user's PATH lacks /sbin."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or name


def run(command: Sequence[str], failure: str, limit: float = 600) -> str:
    """Returns the output of a command; raises KernelError, which starts with ``failure``."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except FileNotFoundError:
        raise KernelError(f"{failure}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{failure}: not finished after {limit:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise KernelError(f"{failure}: {reason}")
    return done.stdout
