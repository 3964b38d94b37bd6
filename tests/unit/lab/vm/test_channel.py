# SPDX-License-Identifier: GPL-2.0-only
"""The output of a guest's command arrives complete, without delay, and ends."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.lab.vm.channel import Bridge, Channel, Tail
from ipttrace.lab.vm.initramfs import end_token

TOKEN = end_token("0123456789abcdef0123456789abcdef")


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.lists(st.sampled_from([b"\x1e", b"\x1e0", TOKEN[:-1], b"text\n", b"\0\xff", b"0123"])),
    st.lists(st.integers(min_value=0, max_value=10_000)),
)
def test_output_is_complete_wherever_it_is_cut(parts: list[bytes], positions: list[int]) -> None:
    # GIVEN output with many prefixes of the token, and the token at its end
    output = b"".join(parts)
    tail = Tail(TOKEN)
    # WHEN it arrives in pieces
    got = b"".join(tail.feed(piece) for piece in cut(output + TOKEN, positions))
    # THEN all of it is delivered, without the token, and the end is detected
    assert got == output
    assert tail.ended
    assert tail.flush() == b""


def test_a_prompt_without_a_newline_is_not_held_back() -> None:
    tail = Tail(TOKEN)
    assert tail.feed(b"password: ") == b"password: "


def test_the_output_of_a_guest_that_dies_is_complete() -> None:
    tail = Tail(TOKEN)
    assert tail.feed(b"almost" + TOKEN[:5]) + tail.flush() == b"almost" + TOKEN[:5]


def test_bytes_after_the_end_are_dropped() -> None:
    tail = Tail(TOKEN)
    assert tail.feed(b"all" + TOKEN + b"late") == b"all"
    assert tail.feed(b"later") == b""


def test_a_closed_reader_does_not_stop_the_guest() -> None:
    # GIVEN a sink that is closed
    ours, theirs = socket.socketpair()
    ends: list[bool] = []

    def closed(data: bytes) -> None:
        raise BrokenPipeError

    channel = Channel("stdout", ours, TOKEN, closed, ends.append)
    channel.start()
    # WHEN the guest continues to write, and ends
    theirs.sendall(b"x" * 100_000)
    theirs.sendall(b"more" + TOKEN)
    channel.join(30)
    # THEN its output is read to the end, and the error is kept
    assert not channel.is_alive()
    assert isinstance(channel.error, BrokenPipeError)
    assert ends[-1] is True
    ours.close()
    theirs.close()


@pytest.fixture
def bridge() -> Iterator[tuple[Bridge, socket.socket]]:
    port, guest = socket.socketpair()
    made = Bridge(port, TOKEN)
    made.start()
    guest.settimeout(30)
    made.user.settimeout(30)
    yield made, guest
    made.close()
    for end in (port, guest, made.user):
        end.close()


def test_the_stream_ends_when_the_command_ends(bridge: tuple[Bridge, socket.socket]) -> None:
    made, guest = bridge
    guest.sendall(b"frames" + TOKEN)
    got = b""
    while data := made.user.recv(100):
        got += data
    assert got == b"frames"


def test_the_control_line_reaches_the_guest(bridge: tuple[Bridge, socket.socket]) -> None:
    made, guest = bridge
    made.user.sendall(b"stop\n")
    assert guest.recv(100) == b"stop\n"


def test_closing_does_not_wait_for_a_stuck_reader() -> None:
    # GIVEN a guest that has filled all buffers
    port, guest = socket.socketpair()
    made = Bridge(port, TOKEN)
    made.start()
    guest.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while guest.send(b"x" * 65536):
            pass
    # WHEN the bridge is closed THEN close() returns
    made.close()
    for end in (port, guest, made.user):
        end.close()
