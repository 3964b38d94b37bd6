# SPDX-License-Identifier: GPL-2.0-only
"""An agent that ends leaves no timer and no signal handler that could kill its process."""

from __future__ import annotations

import subprocess
import sys

# An engine without a kernel; Ctrl-C comes at its first look.
AGENT = """
import os, signal, sys
from types import SimpleNamespace
from ipttrace.capture import agent

class Engine:
    name, notes, names, over = "kernel", [], {}, ""
    books = lambda self: {"due": [0, 0, 0], "delivered": [0, 0, 0], "lost": [0, 0, 0], "missed": 0}
    take = lambda self: []
    disarm = close = lambda self: None
    watch = unwatch = lambda self, fd: None

    def wait(self, timeout):
        os.kill(os.getpid(), signal.SIGINT)
        return []

engine = Engine()
engine.buffers = SimpleNamespace(
    cpus=1, wait=engine.wait, watch=engine.watch, unwatch=engine.unwatch
)
agent.open_engine = lambda request: engine
status = agent.main(agent.Request(), 1, None)
handlers = {signal.getsignal(n) for n in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)}
print(status, signal.getitimer(signal.ITIMER_REAL), handlers == {signal.SIG_IGN}, file=sys.stderr)
"""


def test_ctrl_c_does_not_kill_an_agent_that_takes_long_to_exit() -> None:
    # GIVEN an agent that Ctrl-C has ended; Python then restores the signals' default actions,
    # and takes seconds to exit if much is loaded
    done = subprocess.run([sys.executable, "-c", AGENT], capture_output=True, timeout=60)
    # THEN neither a timer nor an impatient second Ctrl-C can kill it meanwhile
    assert done.stderr.decode() == "130 (0.0, 0.0) True\n"
    assert done.returncode == 0
