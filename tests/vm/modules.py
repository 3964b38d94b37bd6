# SPDX-License-Identifier: GPL-2.0-only
"""Kernel modules that change what other tests see: loaded for a while."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.vm.patience import PATIENCE


@contextlib.contextmanager
def loaded(*modules: str) -> Iterator[None]:
    """These modules, during a with statement; those that were not there before are removed.

    br_netfilter shows bridged packets to iptables, and ip_gre takes packets of GRE from other
    sockets.  Namespaces that use them must be removed inside the statement.
    """
    new = [one for one in modules if not Path("/sys/module", one).exists()]
    subprocess.run(["modprobe", "-a", *modules], check=True)
    try:
        yield
    finally:
        # A namespace's devices go some time after it.
        deadline = time.monotonic() + PATIENCE
        while new:
            done = subprocess.run(
                ["modprobe", "-r", *reversed(new)], capture_output=True, text=True, check=False
            )
            if not done.returncode:
                break
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)
