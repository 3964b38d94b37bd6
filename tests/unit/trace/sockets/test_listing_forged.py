# SPDX-License-Identifier: GPL-2.0-only
"""A forged stream may hold any bytes as stages: they are shown, and break nothing."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.trace import query
from ipttrace.trace.query.from_socket import by_ends, by_port
from ipttrace.trace.session import Trace
from ipttrace.trace.sockets.listing import ORDERS, Listing
from ipttrace.tui.sockets import SocketsView
from ipttrace.view.sockets import FORMATS, StageView
from tests.data.stages import processes
from tests.data.stations import begun

SIZE = record.SOCKET_DTYPE.itemsize
EVIL = {"comm": "\x1b[31m[bold]\u202e" * 9, "container": "\n" * 300, "pids": [1, 2], "pid": 7}


def told(data: bytes) -> Trace:
    trace = begun()
    trace.feed(processes(_1=EVIL))
    trace.feed(Frame(Kind.SOCKET, data))
    return trace


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(min_size=SIZE, max_size=SIZE), min_size=1, max_size=12))
@example([b"\xff" * SIZE])
@example([bytes(SIZE)] * 2)
def test_any_bytes_are_shown(records: list[bytes]) -> None:
    trace = told(b"".join(records))
    stages = trace.sockets.take()
    assert len(stages) == len(records)
    # THEN each format has a line for each, without a character that a terminal acts on
    for name in FORMATS:
        text = StageView(name, {}).lines(stages)
        assert not set(text) & set("\x1b\u202e\x00")
        assert text.count("\n") >= len(stages)
    # AND the list of the screen has them, in every order, with queries that compile
    listing = Listing()
    listing.add(0, stages)
    view = SocketsView()
    with patch.object(SocketsView, "width", 90), patch("ipttrace.tui.sockets.chosen", lambda _: {}):
        view._listing, view._recorded = listing, True
        for order in ORDERS:
            view.sort = order
            lines = [view.cells(key) for key in view.refill()]
        view.heading()
    assert not {character for line in lines for text, _ in line for character in text} & set(
        "\x1b\n"
    )
    for line in listing.top("last", 20):
        one = line.newest
        text = by_ends(one.protocol_name, line.ends) if line.ends else ""
        assert query.compile(text or by_port(one.protocol_name, one.local))
