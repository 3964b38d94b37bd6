# SPDX-License-Identifier: GPL-2.0-only
"""A packet that a target copies or answers, and the other packet, have rows of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from ipttrace.lab.network.ns import call_in
from ipttrace.trace.row import Row
from tests.lab.cases import packet
from tests.lab.targets import THERE, UDP
from tests.lab.wire import transmit, udp
from tests.vm.conftest import SHARED, captured
from tests.vm.plain import Plain
from tests.vm.texts import in_short
from tests.vm.wired import wired

pytestmark = SHARED

COUNT = 7
TO = {4: "10.9.1.1", 6: "fd09::1:1"}
RULES = """*mangle
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:copied -
-A PREROUTING -p udp --dport 9 -j copied
-A copied
-A copied -j TEE --gateway {there}
-A copied -j TEE --gateway {there}
COMMIT
"""


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    with wired() as one:
        for family, there in THERE.items():
            one.load(RULES.format(there=there), family)
        yield one


@pytest.mark.parametrize("expr", ["", "udp dst port 9"], ids=["all", "filtered"])
def test_a_copy_is_another_packet_inside_the_call_that_made_it(plain: Plain, expr: str) -> None:
    # WHEN datagrams come of which TEE sends two copies
    sent = [packet(family, UDP, udp(9))(to, n) for family, to in TO.items() for n in range(COUNT)]
    with captured(expr, netns=plain.name, engine="kernel") as capture:
        call_in(plain.name, lambda: transmit(sent))
        capture.wait_rows(6 * len(sent), {plain.inode})
    journeys: dict[int, list[Row]] = defaultdict(list)
    for row in capture.rows:
        journeys[row.journey].append(row)
    # THEN original and copies are three journeys, each complete
    originals = [rows for rows in journeys.values() if rows[0].hook == "PREROUTING"]
    copies = [rows for rows in journeys.values() if rows[0].hook == "OUTPUT"]
    assert (len(originals), len(copies)) == (len(sent), 2 * len(sent))
    path = "PREROUTING:1 copied:1 copied:2 copied:3 copied:4/return PREROUTING:2/policy"
    assert {tuple(map(in_short, rows)) for rows in originals} == {
        (f"PREROUTING mangle {path} ACCEPT", "INPUT mangle INPUT:1/policy ACCEPT")
    }
    assert {tuple(map(in_short, rows)) for rows in copies} == {
        (
            "OUTPUT mangle OUTPUT:1/policy ACCEPT",
            "POSTROUTING mangle POSTROUTING:1/policy ACCEPT",
        )
    }
    # AND the calls of a copy are inside the call of its original
    outer = {rows[0].call for rows in originals}
    assert {row.parent for rows in copies for row in rows} == outer
    assert {row.parent for rows in originals for row in rows} == {None}
