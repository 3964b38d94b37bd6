# SPDX-License-Identifier: GPL-2.0-only
"""Calls of a packet leave both engines together, whenever they are taken."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ipttrace.capture import combined, two_engines
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap
from ipttrace.capture.netlink.events import EVENT
from ipttrace.capture.netlink.nft import xt_bpf
from tests.data.records import MONO, Array, entry, leave, rule, udp, v4

PACKET = v4(17, "10.0.0.1", "10.0.0.2", udp(1000, 53, b"payload"))
JOURNEY, CALL = combined.FIRST + 7, combined.FIRST + 1
HOLD = 20_000_000  # as the netlink engine holds events


def none() -> list[Array]:
    """No records."""
    return [part[:0] for part in (entry(1), rule(1, 0, b"", 1), leave(1, 1))]


class Source:
    """Stands for an engine: hands out records read or written before a time."""

    def __init__(self, records: list[Array], flips: Array) -> None:
        self.names: list[Any] = []
        self.notes: list[Any] = []
        self.over, self.wake, self.changes = "", 0, None
        self.buffers = self
        self.before = 0
        self.flips, self._flips = flips[:0], flips
        self.priorities = np.zeros(0, np.int32)
        self._records = records

    def watch(self, wake: int) -> None:
        """Takes no notice."""

    def drain_wake(self) -> None:
        """Takes no notice."""

    def flush(self) -> bool:
        """Has read all."""
        return True

    def take(self) -> list[Array]:
        """All records, once their time is before `before`."""
        self.flips, self._flips = self._flips, self._flips[:0]
        taken = none()
        if len(self._records[0]) and int(self._records[0]["time"][0]) < self.before:
            taken, self._records = self._records, taken
        self.priorities = np.zeros(len(taken[0]), np.int32)
        return taken


@pytest.mark.parametrize(("table", "chain"), [(1_000_000, 1_060_000), (1_060_000, 1_000_000)])
@pytest.mark.parametrize("shift", [0, 5_000_000])
def test_a_packet_under_way_while_records_are_taken_is_one_journey(
    monkeypatch: pytest.MonkeyPatch, table: int, chain: int, shift: int
) -> None:
    # GIVEN a packet that meets a legacy table and a chain of nftables, one behind the other
    of = {"hook": 1, "family": 2}
    flips = np.zeros(1, EVENT)
    flips["journey"], flips["time"], flips["iif"] = JOURNEY, MONO, 2
    flips["caplen"] = len(PACKET)
    flips["packet"][0, : len(PACKET)] = np.frombuffer(PACKET, np.uint8)
    kernel = Source(
        [entry(1, table, PACKET, **of), rule(1, 0, b"INPUT", 1), leave(1, 1)], flips[:0]
    )
    netlink = Source(
        [
            entry(CALL, chain, PACKET, skb=JOURNEY, source=1, tables=1, **of),
            rule(CALL, 0, b"in", 1),
            leave(CALL, 1, at=chain, skb=JOURNEY),
        ],
        flips,
    )
    both = combined.KernelAndNetlink(cast(Any, kernel), cast(Any, netlink))
    # WHEN records are taken while it is between the two, and when that has settled
    taken: list[Array] = []
    for now in (1_030_000 + shift, 1_045_000 + shift + HOLD, 60_000_000, 120_000_000):
        clock = iter((MONO + now, MONO + now + 1))
        monkeypatch.setattr(combined, "time", SimpleNamespace(monotonic_ns=partial(next, clock)))
        kernel.before, netlink.before = MONO + now, MONO + now - HOLD
        taken += [part for part in both.take()[:1] if len(part)]
    # THEN both calls have the packet's skb
    assert [hex(one) for part in taken for one in part["skb"].tolist()] == ["0x1000"] * 2


def test_records_that_wait_for_rules_stay_below_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN rules of nftables that cannot be read, and a module that goes on writing records
    monkeypatch.setattr(two_engines, "MOST_HELD", 10_000)
    kernel, netlink = Source(none(), np.zeros(0, EVENT)), Source(none(), np.zeros(0, EVENT))
    both = combined.KernelAndNetlink(cast(Any, kernel), cast(Any, netlink))
    kernel.before = MONO + 1_000_000
    calls, taken = 0, 0
    for call in range(1, 101):
        if not len(kernel._records[0]):
            calls += 1
            kernel._records = [entry(call, call), rule(call, 0, b"INPUT", 1), leave(call, 1)]
        taken += len(both.take()[0])
    # THEN most of them stay in its buffers, where what has no room is counted
    assert taken == 0
    assert 10_000 < both._kernel_records.size < 11_000
    assert calls < 25
    # WHEN the rules are read THEN all that were written come, as if nothing had been
    kernel.before = netlink.before = 1 << 62
    both.disarm = lambda: None  # type: ignore[method-assign]
    both.armed = False
    while True:
        some = len(both.take()[0])
        taken += some
        if not some:
            break
    assert taken == calls


EXPRESSIBLE, OTHER = pcap.compile("udp port 53"), pcap.compile("udp[8] ^ 3 = 7")


def test_beside_the_module_a_filter_must_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a kernel that has xt_bpf
    monkeypatch.setattr(xt_bpf, "can_run", lambda program: True)
    # THEN every filter can be used
    two_engines.refuse_inexact(OTHER)
    # GIVEN one that does not
    monkeypatch.setattr(xt_bpf, "can_run", lambda program: False)
    # THEN only those that nftables can express
    two_engines.refuse_inexact(b"")
    two_engines.refuse_inexact(EXPRESSIBLE)
    with pytest.raises(CaptureError, match=r"^nftables cannot .*: --engine netlink traces both"):
        two_engines.refuse_inexact(OTHER)
