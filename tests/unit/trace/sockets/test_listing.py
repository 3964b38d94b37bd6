# SPDX-License-Identifier: GPL-2.0-only
"""Connections and listeners with all their stages, as the screen lists them."""

from __future__ import annotations

import pytest

from ipttrace.stream import record
from ipttrace.stream.decoder import Decoder
from ipttrace.trace import query
from ipttrace.trace.query.from_socket import by_ends, by_port
from ipttrace.trace.session import Trace
from ipttrace.trace.sockets import listing
from ipttrace.trace.sockets.listing import ORDERS, Listing
from tests.data.stages import CLIENT, HANDSHAKE, SERVER, frame, stage, stream


def listed(trace: Trace) -> Listing:
    found = Listing()
    found.add(trace.host, trace.sockets.take())
    return found


@pytest.fixture
def trace() -> Trace:
    found = Trace()
    for one in Decoder().feed(stream()):
        found.feed(one)
    return found


def test_each_connection_has_its_stages_queue_and_process(trace: Trace) -> None:
    lines = listed(trace).top("last", 10)
    # THEN the newest is first; a listener is one of them
    assert [one.newest.name for one in lines] == [
        *("SYN dropped", "refused", "first read", "first read", "listening"),
    ]
    dropped, refused, good, _, listener = lines
    assert (dropped.queue, dropped.queue_most, dropped.syns) == (4, 3, 2)
    # From the first SYN to the last.
    assert (dropped.took, dropped.failed) == (2_000_000_000, True)
    assert "accept queue is full" in dropped.why
    assert "no process listens there" in refused.why
    # AND of a connection the time until its process has it counts
    assert good.took == 1_300_000
    assert list(good.stages) == [*HANDSHAKE, record.FIRST_READ]
    assert good.process is not None
    assert good.process.comm == "nginx"
    # AND a listener counts what its connections come to
    assert (listener.accepted, listener.dropped, listener.is_port) == (2, 3, True)


def test_a_row_leads_to_its_connection_before_and_after_dnat(trace: Trace) -> None:
    lines, rows = listed(trace), trace.store.rows(range(2))
    found = [lines.of_row(row) for row in rows]
    assert [row.dst for row in rows] == ["192.0.2.7", "172.17.0.2"]
    assert found[0] is not None
    assert found[0] is found[1]
    assert found[0].ends == (
        (("10.1.0.2", 40004), ("172.17.0.2", 80)),
        (("10.1.0.2", 40004), ("192.0.2.7", 8080)),
    )


def test_a_client_that_gives_up_has_failed_and_a_reset_says_what_it_was_before() -> None:
    trace = Trace()
    ends = {"local": CLIENT, "remote": SERVER}
    syn = [stage(record.CONNECTING, 1_000 * at, flags=at and 0x200, **ends) for at in range(3)]
    child = [stage(what, 10_000 + at) for at, what in enumerate(HANDSHAKE[:3])]
    reset = stage(record.RESET, 20_000, flags=record.SK_F_SENT)
    trace.feed(frame(*syn, stage(record.CLOSED, 9_000, **ends), *child, reset))
    server, client = listed(trace).top("last", 2)
    assert (client.failed, client.took, client.syns) == (True, 9_000, 2)
    assert client.why == "given up: no answer to its SYN"
    assert server.why == "reset by this host, before a process has accepted it"


def test_a_port_that_is_used_again_is_another_listener() -> None:
    trace = Trace()
    first = stage(record.LISTENING, 0, remote=None, sk=1)
    done = [stage(what, 10 + at, listener=1) for at, what in enumerate(HANDSHAKE)]
    closed = stage(record.CLOSED, 20, remote=None, sk=1, flags=record.SK_F_LISTENER)
    again = stage(record.LISTENING, 30, remote=None, sk=2)
    later = stage(record.ACCEPTED, 40, remote=("10.0.0.9", 5), listener=1)
    trace.feed(frame(first, *done, closed, again, later))
    lines = listed(trace).top("last", 10)
    (listener,) = [one for one in lines if one.is_port]
    assert (listener.newest.name, listener.accepted) == ("listening", 0)
    assert listener.newest.local == SERVER


def test_of_very_many_the_oldest_are_forgotten_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_MOST", 100)
    trace = Trace()
    ends = [stage(record.SYN_TAKEN, at, remote=("10.0.0.3", 1 + at)) for at in range(150)]
    trace.feed(frame(stage(record.LISTENING, 0, remote=None, sk=1), *ends))
    found = listed(trace)
    assert (len(found), found.forgotten) == (100, 51)
    assert found.top("last", 1)[0].newest.remote == ("10.0.0.3", 150)
    assert not found._listeners


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_can_be_reversed(trace: Trace, order: str) -> None:
    lines = listed(trace)
    assert len(lines.top(order, 10)) == len(lines.top(order, 10, ascending=True)) == 5
    assert len(lines.top(order, 2)) == 2


def test_queries_of_ends_and_ports_always_compile() -> None:
    ends = [(("2001:db8::1", 5), ("2001:db8::2", 80))]
    for text in (by_ends("TCP", ends), by_port("UDP", ("::", 53)), by_port("132", ("10.0.0.1", 7))):
        assert query.compile(text).text == text
    assert by_port("UDP", ("0.0.0.0", 53)) == "proto=UDP and dport=53"
