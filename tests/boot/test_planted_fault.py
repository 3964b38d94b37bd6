# SPDX-License-Identifier: GPL-2.0-only
"""A packet disappears, and no rule is to blame: the screen says why after a few keys."""

from __future__ import annotations

import os
import shlex
import sys

from ipttrace.lab import kernels
from ipttrace.lab.network import addresses as at
from tests.boot.terminal import ON_A_TERMINAL, Terminal
from tests.paths import PROJECT

pytestmark = ON_A_TERMINAL

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()[-1]


def test_the_reverse_path_filter_is_named_with_what_to_look_at(terminal: Terminal) -> None:
    # GIVEN a router that has its way back to the client over another device
    words = ["lab", "--kernel", SERIES, "--fault", "rp-filter"]
    program = shlex.join([sys.executable, "-m", "ipttrace", *words])
    terminal.start(f"cd {shlex.quote(str(PROJECT))}; {program}; echo status $?; read end")
    terminal.until_text("ARMED")
    # WHEN somebody opens the drops THEN the kernel's reason is there
    terminal.press("6")
    terminal.until_text("IP_RPFILTER")
    # WHEN its packets are asked for, and one of them is opened
    terminal.press("Enter")
    terminal.until_text("▼ ")
    terminal.press("Home", "Enter")
    # THEN it says what is wrong, and what to look at next
    lines = terminal.until_text("Dropped")
    text = " ".join(line.strip() for line in lines)
    assert f"reverse path filter on lan0 does not expect {at.CLIENT4} from there" in text
    assert "net.ipv4.conf.lan0.rp_filter" in text
