# SPDX-License-Identifier: GPL-2.0-only
"""The agent's memory is bounded in a flood, and does not grow with the packets traced.

Nothing gets lost uncounted at the bounds.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from contextlib import closing
from typing import Any

import pytest

from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from ipttrace.capture.netlink.fading import SPAN, FadingMap
from ipttrace.capture.netlink.reader import Batch, Mailbox
from ipttrace.stream.record import ENTRY
from tests.netns.loopback import LEGACY, MESSAGES, ROWS, LoopbackNamespace, until

PACKETS = 10_000


def drain(engine: NetlinkEngine) -> Counter[int]:
    """Disarms, and takes as the agent does; returns the rows of each source port."""
    engine.disarm()
    ports: Counter[int] = Counter()
    while any(map(len, records := engine.take())):
        ports.update(records[ENTRY]["packet"][:, 20:22].copy().view(">u2")[:, 0].tolist())
    return ports


def test_messages_beyond_the_bound_stay_in_the_kernel_and_are_counted_as_lost_there(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an engine with little memory, from which nothing is taken
    bound = 1 << 20
    monkeypatch.setattr("ipttrace.capture.netlink.reader.MOST_STORED", bound)
    messages, largest = 0, 0
    put = Mailbox.put

    def count(mailbox: Mailbox, batch: Batch) -> None:
        nonlocal messages, largest
        kinds = batch.data[:, 4:6].copy().view("=u2")[:, 0]
        messages += int((kinds == (10 << 8 | 17)).sum())
        largest = max(largest, batch.data.nbytes)
        put(mailbox, batch)

    monkeypatch.setattr(Mailbox, "put", count)
    with closing(NetlinkEngine(Options(netns=namespace.name, buffer=4 << 20))) as engine:
        reader: Any = engine._reader
        # WHEN more messages come than fit
        namespace.send(PACKETS)
        # THEN only so many are stored
        assert 0 < reader._stored <= bound + largest

        # AND once there is room, each was read or lost
        def accounted() -> int:
            return messages + sum(engine.books()["lost"])

        until(lambda: bool(engine.take()) and accounted() >= MESSAGES * PACKETS, "all messages")
        assert accounted() == MESSAGES * PACKETS
        assert sum(engine.books()["lost"]) > 0
        drain(engine)
        assert reader._stored == 0


@pytest.mark.parametrize("legacy", [False, True], ids=["nft", "nft and legacy"])
def test_calls_are_complete_however_small_the_portions_that_are_decoded(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    if legacy:
        namespace.run("iptables-legacy-restore", text=LEGACY)
    # GIVEN portions of a batch each, and room for few events
    monkeypatch.setattr("ipttrace.capture.netlink.engine._PORTION", 1)
    monkeypatch.setattr("ipttrace.capture.netlink.engine._MOST_HELD", 1 << 16)
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        # WHEN many messages wait
        port = namespace.send(PACKETS, 10_000)
        ports = drain(engine)
        books = engine.books()
    # THEN all calls are complete
    assert (sum(books["lost"]), books["missed"]) == (0, 0)
    assert ports[port] == ROWS * PACKETS * (2 if legacy else 1)


def test_memory_does_not_grow_with_the_packets_that_were_traced(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN an engine that remembers the last 1,024 packets, whose end is not reported
    monkeypatch.setattr(FadingMap.__init__, "__defaults__", (1 << 10, SPAN))
    held = []
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        tracemalloc.start()
        try:
            # WHEN it traces ten times as many, again and again
            for _ in range(8):
                namespace.send(PACKETS, 10_000)
                rows = 0

                def all_taken() -> bool:
                    nonlocal rows
                    rows += len(engine.take()[ENTRY])
                    return rows + sum(engine.books()["lost"]) >= ROWS * PACKETS

                until(all_taken, "all rows")
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        drain(engine)
    # THEN it holds what it held after the first ones: 5 bytes of each packet would be more
    assert max(held[2:]) - held[1] < 1 << 18, held
