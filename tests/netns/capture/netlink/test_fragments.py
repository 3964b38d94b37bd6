# SPDX-License-Identifier: GPL-2.0-only
"""Fragments that a table sees before reassembly are related to the packet made of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipttrace.trace import query
from ipttrace.trace.fragments import Fragments
from ipttrace.trace.row import Row
from ipttrace.trace.story import story
from tests.lab.fragments import datagram, piece4, piece6
from tests.lab.wire import transmit
from tests.netns.netlink_lab import Stream
from tests.netns.ruleset_namespace import RulesetNamespace
from tests.netns.wired_namespace import wired_namespace

HANG = 60.0  # s; against a hang only
SIZE = 1600
DATAGRAM = datagram(SIZE)
# Before conntrack puts fragments together, and after.
RULES = """
table inet early {
chain pre { type filter hook prerouting priority -450
ip saddr 10.5.0.5 counter
ip6 saddr fd05::5 counter
}
}
table inet late {
chain pre { type filter hook prerouting priority 0
ct state new ip saddr 10.5.0.5 counter
ct state new ip6 saddr fd05::5 counter
}
chain in { type filter hook input priority 0
ip saddr 10.5.0.5 counter
ip6 saddr fd05::5 counter
}
}
"""
EXPR = "src host 10.5.0.5 or src host fd05::5"


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with wired_namespace() as one:
        one.run("sysctl", "-qw", "net.ipv4.ipfrag_time=1", "net.ipv6.ip6frag_time=1")
        one.nft(RULES)
        yield one


@contextlib.contextmanager
def streaming(namespace: RulesetNamespace, folder: Path) -> Iterator[Stream]:
    """Records the namespace until the test ends."""
    stream = Stream(folder, "--netns", Path(namespace.path).name, "-", EXPR)
    with stream.command:
        stream.command.wait_ready()
        yield stream


def send(namespace: RulesetNamespace, *packets: bytes) -> None:
    with namespace.enter():
        transmit(packets)


def described(stream: Stream, row: Row) -> Fragments | None:
    told = story(stream.trace.store, row.index)
    assert told is not None
    return told.fragments


def rows_with(stream: Stream, text: str) -> list[Row]:
    """The rows that a query matches."""
    asked, store = query.compile(text), stream.trace.store
    context = query.context_of(store)
    return [
        row
        for part in store.parts()
        for row, match in zip(
            store.rows(range(part.first, part.first + len(part))),
            asked.mask(part, context).tolist(),
            strict=True,
        )
        if match
    ]


def wait(stream: Stream, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not reached():
        assert time.monotonic() < deadline, stream.rows()
        assert stream.read(), stream.command.stderr()


def test_a_reassembled_packet_names_its_fragments_and_they_name_it(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with streaming(namespace, tmp_path) as stream:
        spans = [(0, 800), (800, 1200), (1200, SIZE)]
        send(namespace, *(piece4(77, DATAGRAM, *span) for span in spans))
        wait(stream, lambda: len(rows_with(stream, "hook=INPUT")) == 1)
        # THEN the kernel put one packet together, of three fragments
        assert "packets 3 " in namespace.run("nft", "list", "table", "inet", "early")
        assert namespace.run("nft", "list", "table", "inet", "late").count("packets 1 ") == 2
        parts = rows_with(stream, "frag and table=early")
        wholes = rows_with(stream, "not frag and table=late")
        assert (len(parts), len(wholes)) == (3, 2)
        for row in wholes:
            held = described(stream, row)
            assert held is not None
            assert not held.is_fragment
            assert held.complete
            assert [(one.start, one.end) for one in held.pieces] == spans
            assert [one.seq for one in held.pieces] == [one.index for one in parts]
        # AND each fragment names the first row of the packet
        for row in parts:
            held = described(stream, row)
            assert held is not None
            assert held.is_fragment
            assert held.whole is not None
            assert held.whole[0] == wholes[0].index
        assert not rows_with(stream, "frag_fault")


def test_fragments_that_overlap_are_marked(namespace: RulesetNamespace, tmp_path: Path) -> None:
    with streaming(namespace, tmp_path) as stream:
        send(namespace, piece4(5, DATAGRAM, 0, 800), piece4(5, DATAGRAM, 400, SIZE))
        send(namespace, piece4(6, DATAGRAM, 0, 800), piece4(6, DATAGRAM, 800, SIZE))
        wait(stream, lambda: len(rows_with(stream, "hook=INPUT")) == 1)
        assert len(rows_with(stream, "frag")) == 4
        marked = rows_with(stream, "frag_fault=overlap")
        assert [row.frag for row in marked] == ["5:0+", "5:400"]
        # AND no packet is related to them: the kernel dropped it
        held = described(stream, marked[0])
        assert held is not None
        assert held.whole is None


def test_a_packet_whose_fragment_never_comes_is_marked_once_the_kernel_gave_it_up(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with streaming(namespace, tmp_path) as stream:
        wait(stream, lambda: bool(stream.trace.kernel_tables.namespaces()))
        send(namespace, *(piece4(number, DATAGRAM, 0, 800) for number in range(3)))
        send(namespace, *(piece4(9, DATAGRAM, *span) for span in [(0, 800), (800, SIZE)]))
        wait(stream, lambda: len(rows_with(stream, "hook=INPUT")) == 1)
        assert not rows_with(stream, "frag_fault")
        wait(stream, lambda: len(rows_with(stream, "frag_fault=incomplete")) == 3)
        assert "IpReasmTimeout                  3 " in namespace.run("nstat", "-asz", "IpReasm*")
        assert {row.frag for row in rows_with(stream, "frag_fault")} == {"0:0+", "1:0+", "2:0+"}
        held = described(stream, rows_with(stream, "frag_fault")[0])
        assert held is not None
        assert held.waits == 1


@pytest.mark.parametrize("size", [8, 16])
def test_a_first_fragment_without_the_tcp_header_is_marked(
    namespace: RulesetNamespace, tmp_path: Path, size: int
) -> None:
    segment = bytes.fromhex("0fa0 0050 00000001 00000000 5002 ffff 0000 0000") + bytes(20)
    with streaming(namespace, tmp_path) as stream:
        for start, end in ((0, size), (size, len(segment))):
            send(namespace, piece4(3, segment, start, end, protocol=6))
        wait(stream, lambda: len(rows_with(stream, "frag")) == 2)
        (row,) = rows_with(stream, "frag_fault=short")
        assert row.frag == "3:0+"
        held = described(stream, row)
        assert held is not None
        assert not held.pieces[0].portless


def test_ipv6_fragments_are_not_guessed_because_the_kernel_reports_no_fragment_header(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    with streaming(namespace, tmp_path) as stream:
        send(namespace, piece6(77, DATAGRAM, 0, 800), piece6(77, DATAGRAM, 800, SIZE))
        wait(stream, lambda: len(rows_with(stream, "hook=INPUT")) == 1)
        assert len(rows_with(stream, "table=early")) == 2
        assert all(described(stream, row) is None for row in stream.rows())
