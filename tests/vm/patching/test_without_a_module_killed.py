# SPDX-License-Identifier: GPL-2.0-only
"""An agent that traces by BPF is killed while packets flow: nothing stays attached.

Its name puts it last: with nf_tables loaded, `auto` takes another engine in other tests.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from ipttrace.stream.frames import Kind
from tests.vm.bpf_links import links
from tests.vm.conftest import SHARED
from tests.vm.forked import Agent, flooding, until
from tests.vm.test_without_a_module_legacy import LOGGERS, ruled

pytestmark = SHARED

# s of a guest whose clock may run ten times too fast while the host is busy.
LONG = 1800.0


def recorded(agent: Agent) -> bool:
    """Whether records were read."""
    return any(frame.kind == Kind.ENTRY for frame in agent.frames)


@pytest.mark.parametrize("attempt", range(10))
def test_nothing_stays_attached_after_kill_9_in_a_flood(tmp_path: Path, attempt: int) -> None:
    # GIVEN an agent that traces a flood by BPF, where the kernel's log has a logger
    subprocess.run(["modprobe", "nf_log_syslog"], check=True)
    before = links()
    with ruled() as (plain, _):
        loggers = plain.run("sysctl", *LOGGERS).stdout
        assert loggers.count("= nf_log_ip") == 2
        ready = tmp_path / "ready"
        with Agent(engine="bpf", netns=plain.name, ready_file=ready) as agent:
            assert until(lambda: (agent.read(0.1), ready.exists())[1], LONG), agent.stderr
            # Two programs for nftables, three for legacy tables of IPv4, two more for IPv6.
            assert len(links() - before) == 7
            assert plain.run("sysctl", *LOGGERS).stdout.count("= NONE") == 2
            with flooding(plain.name, port=99):
                assert until(lambda: (agent.read(0.1), recorded(agent))[1], LONG)
                # WHEN it is killed
                agent.signal(signal.SIGKILL)
                # THEN nothing is attached any more, and there is no table of ours
                assert until(lambda: links() == before, LONG)
                assert until(
                    lambda: "ipttrace" not in plain.run("nft", "list", "tables").stdout, LONG
                )
                # AND the loggers are as before
                assert until(lambda: plain.run("sysctl", *LOGGERS).stdout == loggers, LONG)
