# SPDX-License-Identifier: GPL-2.0-only
"""Rows say which process has the socket of their packet, beside the one that was running."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from ipttrace.stream import record
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Kind
from ipttrace.trace import query
from ipttrace.trace.query import from_row
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.sockets import owners
from tests.data.records import entry, leave, rule, tcp, udp, v4
from tests.data.stages import BOX, CLIENT, CONTAINER, SERVER, frame, processes, stage, stream
from tests.data.stations import begun, records

NGINX = {"pid": 4711, "comm": "nginx", "runtime": "docker", "container": CONTAINER}
PRE, IN, FORWARD, OUT, POST = range(5)


@pytest.fixture
def trace() -> Trace:
    found = begun()
    found.feed(processes(_1=NGINX, _2={"pid": 9, "comm": "curl"}))
    return found


def row(
    trace: Trace,
    call: int,
    hook: int,
    src: tuple[str, int] = CLIENT,
    dst: tuple[str, int] = SERVER,
    proto: int = 6,
    **fields: Any,
) -> Row:
    """A call's row, as it is once its records are there."""
    ports = src[1], dst[1]
    body = tcp(*ports, 2) if proto == 6 else udp(*ports, b"?")
    given = {"source": record.SOURCE_BPF, "netns": 7, "comm": b"swapper", "hook": hook} | fields
    made = entry(call, 1_000 * call, v4(proto, src[0], dst[0], body), **given)
    trace.feed(records(Kind.ENTRY, made))
    trace.feed(records(Kind.RULE, rule(call, 0, b"INPUT", 7)))
    trace.feed(records(Kind.EXIT, leave(call, 1, 1, 1_000 * call + 500)))
    return trace.store.row(trace.store.end - 1)


def owner(one: Row) -> tuple[int | None, str | None, str | None]:
    return one.owner_pid, one.owner_comm, one.container


SERVED, NONE = (4711, "nginx", CONTAINER), (None, None, None)


def test_packets_that_come_in_and_go_out_are_of_the_socket_of_that_end(trace: Trace) -> None:
    # GIVEN both ends of a connection in one namespace
    here, there = {"local": SERVER, "remote": CLIENT}, {"local": CLIENT, "remote": SERVER}
    trace.feed(frame(stage(record.CONNECTING, 1, **there, owner=2)))
    trace.feed(frame(stage(record.SYN_TAKEN, 5, **here, owner=1)))
    # THEN each packet is of who gets it, or of who sends it; not of who was running
    assert [owner(row(trace, 10 + hook, hook)) for hook in (PRE, IN, OUT, POST)] == [
        *(SERVED, SERVED),
        *((9, "curl", None), (9, "curl", None)),
    ]
    assert owner(row(trace, 20, IN, SERVER, CLIENT)) == (9, "curl", None)
    assert trace.store.row(0).comm == "swapper"
    # AND one that is forwarded, or of another namespace, port or protocol, of none
    assert owner(row(trace, 21, FORWARD)) == NONE
    assert owner(row(trace, 22, IN, netns=8)) == NONE
    assert owner(row(trace, 23, IN, dst=(SERVER[0], 81))) == NONE
    assert owner(row(trace, 24, IN, proto=17)) == NONE


def test_rows_that_came_just_before_the_stage_get_their_owner(trace: Trace) -> None:
    # GIVEN the first packet of a connection, which the tables see before any socket does
    first = row(trace, 1, PRE, dst=("192.0.2.7", 8080))
    second = row(trace, 2, IN)
    assert (owner(first), owner(second)) == (NONE, NONE)
    # WHEN its stage comes, which knows whom the client has called
    flags = record.SK_F_ORIGINAL
    syn = stage(record.SYN_TAKEN, 2_500, owner=1, flags=flags, orig_dport=8080)
    syn["orig_dst"][0, :4] = (192, 0, 2, 7)
    trace.feed(frame(syn))
    # THEN both have it, and so do later ones
    assert [owner(one) for one in trace.store.rows(range(2))] == [SERVED] * 2
    assert owner(row(trace, 3, PRE, dst=("192.0.2.7", 8080))) == SERVED


def test_the_process_that_accepts_takes_over(trace: Trace) -> None:
    trace.feed(frame(stage(record.SYN_TAKEN, 1, owner=1)))
    accepted: dict[str, Any] = {"flags": record.SK_F_PROCESS, "pid": 5000, "comm": b"worker"}
    trace.feed(frame(stage(record.ACCEPTED, 5, **accepted)))
    assert owner(row(trace, 10, IN))[:2] == (5000, "worker")


@pytest.mark.parametrize("address", ["0.0.0.0", SERVER[0]])
def test_datagrams_are_of_the_process_that_has_bound_the_port(trace: Trace, address: str) -> None:
    port = (address, 53)
    trace.feed(frame(stage(record.BOUND, 1, local=port, remote=None, protocol=17, owner=1)))
    assert owner(row(trace, 10, IN, dst=(SERVER[0], 53), proto=17)) == SERVED
    assert owner(row(trace, 11, OUT, (SERVER[0], 53), CLIENT, proto=17)) == SERVED
    # AND no longer once it is closed
    gone = stage(record.CLOSED, 20_000, local=port, remote=None, protocol=17)
    trace.feed(frame(gone))
    assert owner(row(trace, 30, IN, dst=(SERVER[0], 53), proto=17)) == NONE


@pytest.mark.parametrize("fresh", [3, 1000])
def test_of_very_many_the_oldest_are_forgotten(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, fresh: int
) -> None:
    monkeypatch.setattr(owners, "_MOST", 10)
    monkeypatch.setattr(owners, "_FRESH", fresh)
    ends = [stage(record.SYN_TAKEN, at, remote=(CLIENT[0], 1 + at), owner=1) for at in range(30)]
    for one in ends:
        trace.feed(frame(one))
    assert len(trace._owners) == 10
    assert owner(row(trace, 50, IN, src=(CLIENT[0], 1))) == NONE
    assert owner(row(trace, 51, IN, src=(CLIENT[0], 30))) == SERVED


def test_queries_and_the_key_filter_by_owner() -> None:
    trace = Trace()
    for one in Decoder().feed(stream()):
        trace.feed(one)
    rows = trace.store.rows(range(trace.store.first, trace.store.end))
    assert [owner(one) for one in rows] == [SERVED, SERVED]
    assert {one.netns for one in rows} == {BOX}
    text = from_row.by_process(rows[0])
    assert text == "owner_comm=nginx and owner_pid=4711"
    context = query.context_of(trace.store)
    for wanted in (text, "owner_pid=4711", "container~^5e1f", "owner_comm!=curl"):
        (part,) = trace.store.parts()
        assert query.compile(wanted).mask(part, context).tolist() == [True, True], wanted
        assert query.compile(wanted).changes
    assert not query.compile("owner_pid=9").mask(part, context).any()


def test_csv_has_them_at_the_end() -> None:
    from ipttrace.view.csv import CsvView

    trace = Trace()
    for one in Decoder().feed(stream()):
        trace.feed(one)
    view = CsvView({})
    text = view.header() + view.lines(trace.store.rows(range(2)))
    first, *_ = csv.DictReader(io.StringIO(text, newline=""))
    assert list(first)[-3:] == ["owner_pid", "owner_comm", "container"]
    assert (first["owner_pid"], first["owner_comm"]) == ("4711", "nginx")
