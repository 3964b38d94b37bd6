# SPDX-License-Identifier: GPL-2.0-only
"""Another user's nftables rules set nf_trace, while legacy tables are traced with a filter.

Behind the others by name, as it loads nf_tables: see test_two_engines.py.
"""

from __future__ import annotations

from collections import Counter

from ipttrace.capture.filter import pcap as pcapfilter
from ipttrace.lab.network.ns import run_in
from tests.vm.bare import Bare
from tests.vm.conftest import SHARED, captured
from tests.vm.logged import Log, deliver, logged
from tests.vm.plain import raw_and_filter

pytestmark = SHARED

FEW = 23
THEIRS, OURS = 7001, 7002
NFTRACE = f"""\
table ip theirs {{
    chain out {{
        type filter hook output priority -400
        udp dport {THEIRS} meta nftrace set 1
    }}
}}
"""


def test_packets_that_nftables_traces_are_not_taken_for_those_of_the_filter() -> None:
    with logged() as plain:
        plain.load(raw_and_filter(""), 4)
        # GIVEN rules of nftables that set nf_trace before any legacy table
        run_in(plain.name, ["nft", "-f", "-"], text=NFTRACE)
        log = Log()
        # WHEN packets of the filter are traced among theirs, in the same memory
        with captured(f"udp dst port {OURS}", netns=plain.name, engine="kernel") as capture:
            deliver(plain, [OURS, THEIRS] * FEW)
            capture.wait_rows(4 * FEW)
        # THEN only those of the filter have rows
        assert Counter(row.dport for row in capture.rows) == {OURS: 4 * FEW}
        # AND theirs are logged as without us: the policies of four chains
        assert log.by_port() == {THEIRS: 4 * FEW}
        with Bare() as bare:
            bare.control.arm(bare.pins, pcapfilter.compile(f"udp dst port {OURS}"))
            deliver(plain, [OURS, THEIRS] * FEW)
            bare.control.disarm()
            deliver(plain, [THEIRS] * FEW)
        assert log.by_port() == {THEIRS: 3 * 4 * FEW}
