# SPDX-License-Identifier: GPL-2.0-only
"""Other flows' drops stay in the kernel, the books balance, and a killed agent leaves nothing."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from ipttrace.lab.network.ns import netns_inode
from ipttrace.stream.frames import Kind
from tests.vm.bpf_links import links
from tests.vm.conftest import SHARED
from tests.vm.drops.routed import CLIENT, ROUTER, SERVER, Routed, counter, send
from tests.vm.drops.watched import Watched
from tests.vm.forked import Agent, flooding, until

pytestmark = SHARED

COUNT = 23
MANY = 20_000


def test_drops_of_other_flows_are_refused_in_the_kernel() -> None:
    # GIVEN drops of one flow only, while another one drops 20,000 packets
    with Routed(), Watched("udp port 9", netns_inode(SERVER)) as watched:
        before = counter(SERVER, "UdpNoPorts")
        send(MANY, port=10)
        # WHEN some of the first flow are dropped
        found = watched.during(partial(send, COUNT), lambda one: one.what == "dropped", COUNT)
        # THEN only they are recorded
        assert len(found + watched.settle()) == COUNT
        books = watched.balanced()
        assert books["delivered"] == COUNT
        # AND all others were refused, as many as the kernel counts
        others = counter(SERVER, "UdpNoPorts") - before - COUNT
        assert others > MANY // 2
        assert books["refused"] == others


def test_only_the_namespace_that_is_traced() -> None:
    with Routed(), Watched("", netns_inode(ROUTER)) as watched:
        watched.settle()
        # WHEN the server drops, and then the router
        send(COUNT)
        act = partial(send, COUNT, "10.77.0.1")
        found = watched.during(act, lambda one: one.what == "dropped", COUNT)
        # THEN the server's drops are not recorded
        assert {one.netns for one in found + watched.settle()} == {netns_inode(ROUTER)}


def test_nothing_stays_attached_after_kill_9(tmp_path: Path) -> None:
    # GIVEN an agent that records drops and stations in a flood
    before = links()
    with Routed():
        ready = tmp_path / "ready"
        options = {"engine": "none", "netns": CLIENT, "drops": True, "stations": True}
        with Agent(ready_file=ready, **options) as agent:
            assert until(lambda: (agent.read(0.1), ready.exists())[1]), agent.stderr
            assert len(links() - before) > 10
            with flooding(CLIENT, port=99):
                assert until(
                    lambda: (
                        agent.read(0.1),
                        any(frame.kind == Kind.STATION for frame in agent.frames),
                    )[1]
                )
                # WHEN it is killed
                agent.signal(signal.SIGKILL)
                # THEN nothing is attached any more
                assert until(lambda: links() == before)
