# SPDX-License-Identifier: GPL-2.0-only
"""However tracing ends by itself during a flood, the next one begins at once."""

from __future__ import annotations

import os
from pathlib import Path

from ipttrace.capture.kernel.control import Control
from tests.vm.bare import Bare, references
from tests.vm.conftest import SHARED, kprobes
from tests.vm.forked import flooding, until
from tests.vm.plain import Plain, raw_and_filter

pytestmark = SHARED

ROUNDS = 10
RULES = raw_and_filter("-A OUTPUT -p udp -m udp --dport 9 -j REJECT")


def test_a_socket_that_is_closed_makes_room_for_the_next_at_once() -> None:
    # The flood is forked first: a child has all sockets of its parent.
    with Plain() as plain, flooding(plain.name), Bare() as bare:
        plain.load(RULES, 4)
        bare.control.arm(bare.pins)
        for _ in range(ROUNDS):
            other = Control()
            # WHEN the owner's socket is closed, which does not wait for the end
            bare.control.close()
            # THEN another one arms, without an error between
            bare.control = other
            other.arm(bare.pins)
            assert references() == 1
        assert until(lambda: bare.control.status().calls > 0)
        bare.control.disarm()
        assert references() == 0


def test_a_namespace_that_ends_under_load_ends_the_tracing() -> None:
    with Bare() as bare:
        for turn in range(ROUNDS):
            with Plain() as plain:
                plain.load(RULES, 4)
                with flooding(plain.name):
                    fd = os.open(f"/run/netns/{plain.name}", os.O_RDONLY)
                    bare.control.arm(bare.pins, netns=fd)
                    os.close(fd)
                    assert until(lambda: bare.control.status().calls > 10)
            # WHEN it is deleted, THEN tracing ends, whoever looks first
            if turn % 2:
                assert until(lambda: references() == 0)
            assert until(lambda: bare.control.status().state != "armed")
            assert bare.control.status().reason == "netns gone"
        assert until(lambda: bare.control.status().state == "idle")
    assert not kprobes()
    assert not Path("/sys/module/ipttrace").exists()
