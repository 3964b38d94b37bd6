# SPDX-License-Identifier: GPL-2.0-only
"""An agent does not outlive its reader."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from ipttrace.lab import traffic
from tests.vm.conftest import SHARED
from tests.vm.forked import Agent, until, wait_gone
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain

pytestmark = SHARED


def test_an_agent_whose_reader_is_killed_ends_by_itself(tmp_path: Path) -> None:
    # GIVEN print, and its agent
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "ipttrace", "print", "--ready-file", str(ready)]
    with (
        Plain() as plain,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as shown,
    ):
        plain.load("*filter\nCOMMIT\n", 4)
        assert shown.stdout is not None
        assert until(lambda: ready.exists() and ready.read_text().endswith("\n"))
        agent = int(ready.read_text())
        traffic.udp(plain.name, "127.0.0.1", 9, 23)
        assert select.select([shown.stdout], [], [], PATIENCE)[0]
        # WHEN print is killed
        shown.kill()
        # THEN its agent ends too (conftest checks that nothing is left behind)
        assert wait_gone(agent)


def test_an_agent_whose_stream_is_closed_ends_without_a_message() -> None:
    # GIVEN an agent whose reader has closed the stream
    with Agent() as agent:
        agent.wait_for_hello()
        agent.close_stream()
        # THEN it ends at its next write
        assert agent.wait() == 0
        assert agent.stderr == ""


def test_sigterm_ends_an_agent_whose_reader_has_stopped() -> None:
    # GIVEN an agent that is blocked in a write: a flood has filled the pipe, nobody reads
    with Plain() as plain, Agent(netns=plain.name) as agent:
        plain.load("*filter\nCOMMIT\n", 4)
        agent.wait_for_hello()
        traffic.flood(plain.name, "127.0.0.1", 9, count=499)
        wchan = Path(f"/proc/{agent.pid}/wchan")
        assert until(lambda: "pipe_write" in wchan.read_text()), wchan.read_text()
        # WHEN it gets SIGTERM twice
        os.kill(agent.pid, signal.SIGTERM)
        os.kill(agent.pid, signal.SIGTERM)
        # THEN it ends, and reports that the end of the stream is lost
        assert agent.wait() == 1
        assert (
            agent.stderr
            == "ipttrace: the stream's reader has stalled: the end of the stream is lost\n"
        )
