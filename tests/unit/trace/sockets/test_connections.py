# SPDX-License-Identifier: GPL-2.0-only
"""Stages between the same ends are one connection, with what earlier ones have shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind, StreamError
from ipttrace.trace.session import Trace
from ipttrace.trace.sockets import Process, Stage
from tests.data.messages import hello
from tests.data.stages import CLIENT, HANDSHAKE, SERVER, frame, processes, put, stage


def begun() -> Trace:
    """A trace at the beginning of its stream."""
    trace = Trace()
    begin(trace)
    return trace


def begin(trace: Trace) -> None:
    """Feeds the first frame of a stream."""
    trace.feed(Frame(Kind.HELLO, json.dumps(hello(engine="none")).encode()))


def told(*frames: Frame) -> list[Stage]:
    """The stages of a stream with these frames."""
    trace = begun()
    for one in frames:
        trace.feed(one)
    return trace.sockets.take()


def test_later_stages_have_the_sockets_and_the_destination_of_earlier_ones() -> None:
    # GIVEN a handshake, of which only the SYN has the original destination, …
    syn = stage(HANDSHAKE[0], 0, listener=1, flags=record.SK_F_ORIGINAL, orig_dport=8080)
    put(syn, "orig_dst", "192.0.2.7")
    parts = [
        syn,
        stage(HANDSHAKE[1], 5, listener=1, request=2),
        stage(HANDSHAKE[2], 15, listener=1, request=2, sk=3),
        stage(HANDSHAKE[3], 35, sk=3, flags=record.SK_F_PROCESS, pid=9, comm=b"nginx"),
    ]
    # WHEN the records come in another order
    *_, last = found = told(frame(*reversed(parts)))
    # THEN the last stage has all of it
    assert [one.stage for one in found] == list(HANDSHAKE)
    assert (last.listener, last.request, last.sk) == (1, 2, 3)
    assert last.original == ("192.0.2.7", 8080)
    assert [one.since for one in found] == [None, 5, 10, 20]
    assert last.process == Process(pid=9, comm="nginx", uid=0)
    assert {(one.connection, one.server) for one in found} == {(1, True)}


def test_ends_that_are_used_again_are_another_connection() -> None:
    # GIVEN two connections between the same ends, the second after the first was closed, …
    closed = [stage(what, at) for at, what in enumerate((*HANDSHAKE, record.CLOSED))]
    again = [stage(what, 100 + at) for at, what in enumerate(HANDSHAKE)]
    # … and a third, the end of whose predecessor was not seen
    third = stage(record.SYN_TAKEN, 200)
    found = told(frame(*closed, *again, third))
    assert [one.connection for one in found] == [1] * 5 + [2] * 4 + [3]
    assert found[5].since is None


def test_a_reset_that_comes_after_the_end_is_of_the_same_connection() -> None:
    # GIVEN a listener that goes away: the kernel closes the child before it resets it
    *_, last = (stage(what, at) for at, what in enumerate((*HANDSHAKE, record.CLOSED)))
    reset = stage(record.RESET, 9, flags=record.SK_F_SENT)
    again = stage(record.RESET, 12, flags=record.SK_F_SENT)
    taken = told(frame(*(stage(what, at) for at, what in enumerate(HANDSHAKE)), last, reset, again))
    assert {(one.connection, one.server) for one in taken} == {(1, True)}


def test_a_syn_that_is_repeated_is_counted() -> None:
    parts = [stage(record.SYN_DROPPED, 3), stage(record.SYN_TAKEN, 9), stage(record.SYN_TAKEN)]
    again = stage(record.CONNECTING, 5, local=CLIENT, remote=SERVER, flags=record.SK_F_AGAIN)
    first = stage(record.CONNECTING, 1, local=CLIENT, remote=SERVER)
    found = told(frame(*parts, first, again))
    assert [(one.name, one.connection, one.repeated) for one in found] == [
        ("SYN taken", 1, 0),
        ("connecting", 2, 0),
        ("SYN dropped", 1, 0),
        ("connecting", 2, 1),
        ("SYN taken", 1, 1),
    ]


def test_the_process_is_the_one_that_called_and_else_the_one_that_listens() -> None:
    facts = {"pid": 5, "comm": "nginx", "exe": "/usr/sbin/nginx", "container": "ab\x1b[2J"}
    caller = stage(record.ACCEPTED, 2, owner=1, flags=record.SK_F_PROCESS, pid=6, levels=2)
    caller["pids"][0, :2] = (6, 1)
    others = [stage(record.SYN_TAKEN, 1, owner=1), stage(record.CLOSED, 3, owner=99)]
    syn, accepted, closed = told(processes(_1=facts), frame(caller, *others))
    assert syn.process == Process(5, comm="nginx", exe="/usr/sbin/nginx", container="ab\\x1b[2J")
    assert (syn.called, accepted.called) == (False, True)
    assert accepted.process
    assert (accepted.process.pids, accepted.process.exe) == ((6, 1), "/usr/sbin/nginx")
    # Nothing is known of the last one: the connection's process is.
    assert closed.process == accepted.process


def test_listeners_and_ports_have_no_peer_and_are_no_connection() -> None:
    (listening,) = told(frame(stage(record.LISTENING, remote=None)))
    assert (listening.remote, listening.connection, listening.server) == (None, 0, None)
    six = stage(record.BOUND, local=("::", 53), remote=("::", 0), protocol=17)
    (bound,) = told(frame(six))
    assert (bound.local, bound.remote, bound.family) == (("::", 53), None, 6)


def test_a_stage_of_a_later_version_is_unknown_not_an_error() -> None:
    (found,) = told(frame(stage(200, protocol=132, flags=0xFFFF, levels=255)))
    assert (found.name, found.protocol_name) == ("unknown", "132")
    assert found.process
    assert len(found.process.pids) == record.PID_LEVELS


@pytest.mark.parametrize(
    "about",
    [
        {"_1": 7},
        {"_1": {"pid": -1}},
        {"_1": {"pid": "1"}},
        {"_1": {"comm": ["x"]}},
        {"_1": {"pids": [1] * 99}},
        {"_1": {"uid": 1 << 40}},
        {"x": {}},
        {"_" + "9" * 40: {}},
    ],
)
def test_processes_that_no_agent_writes_are_refused(about: dict[str, object]) -> None:
    with pytest.raises(StreamError, match="malformed processes"):
        told(processes(**about))


def test_random_records_are_bounded_and_never_an_error() -> None:
    random = np.random.default_rng(7)
    raw = random.bytes(record.SOCKET_DTYPE.itemsize * 40_000)
    trace = begun()
    trace.feed(Frame(Kind.SOCKET, raw))
    # Nothing takes them: only the newest are kept.
    assert len(trace.sockets.take()) == 1 << 14
    assert trace.sockets.size < 32 << 20


def test_another_stream_begins_anew() -> None:
    trace = Trace()
    for _ in range(2):
        begin(trace)
        trace.feed(frame(stage(record.ACCEPTED, owner=1)))
        (found,) = trace.sockets.take()
        assert (found.since, found.process) == (None, None)
        trace.feed(processes(_1={"pid": 5}))


def test_lost_stages_are_lost() -> None:
    trace = begun()
    trace.feed(Frame(Kind.BOOKS, b'{"sockets": {"lost": 3, "missed": 2}}'))
    assert (trace.lost, trace.missed) == (3, 2)
    with pytest.raises(StreamError, match="malformed books"):
        trace.feed(Frame(Kind.BOOKS, b'{"sockets": {"lost": -3}}'))
