# SPDX-License-Identifier: GPL-2.0-only
"""Sources: reading, ending, closing from another thread."""

from __future__ import annotations

import io
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ipttrace.tui.feed.source import STOP, FileSource, Source, SourceError, StreamSource

HANG = 60.0


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _close_while_reading(source: Source) -> list[bytes]:
    got: list[bytes] = []
    started = threading.Event()

    def read() -> None:
        for data in source.chunks():
            got.append(data)
            started.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert started.wait(HANG)
    source.close()
    thread.join(HANG)
    assert not thread.is_alive()
    return got


def test_closing_wakes_a_reader_of_a_pipe() -> None:
    before = _open_descriptors()
    read, write = os.pipe()
    os.write(write, b"abc")
    source = StreamSource(os.fdopen(read, "rb", buffering=0))
    assert _close_while_reading(source) == [b"abc"]
    os.close(write)
    source.close()
    assert _open_descriptors() == before


def test_closing_wakes_a_reader_of_a_socket_and_tells_the_agent() -> None:
    near, far = socket.socketpair()
    far.sendall(b"abc")
    assert _close_while_reading(StreamSource(near, control=near)) == [b"abc"]
    assert far.recv(100) == STOP
    assert far.recv(100) == b""
    far.close()


def test_closing_wakes_a_reader_of_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = FileSource(tmp_path / "fifo")
    write = os.open(tmp_path / "fifo", os.O_WRONLY)
    os.write(write, b"abc")
    assert _close_while_reading(source) == [b"abc"]
    os.close(write)


def test_a_source_closed_before_reading_returns_no_bytes() -> None:
    before = _open_descriptors()
    read, write = os.pipe()
    closed = threading.Event()
    source = StreamSource(os.fdopen(read, "rb", buffering=0), on_close=closed.set)
    source.close()
    assert list(source.chunks()) == []
    assert closed.is_set()
    os.close(write)
    assert _open_descriptors() == before


def test_an_agent_that_stops_reading_does_not_block_the_control_line() -> None:
    read, write = os.pipe()
    control_read, control_write = os.pipe()
    os.set_blocking(control_write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(control_write, b"x" * 65536)
    os.set_blocking(control_write, True)
    source = StreamSource(
        os.fdopen(read, "rb", buffering=0), os.fdopen(control_write, "wb", buffering=0)
    )
    assert not source.send(STOP)
    assert not source.stop()
    source.close()
    os.close(write)
    os.close(control_read)


def test_an_agent_that_has_exited_does_not_break_the_control_line() -> None:
    near, far = socket.socketpair()
    source = StreamSource(near, control=near)
    far.close()
    assert not source.stop()
    source.close()


def test_a_stream_in_memory_is_read() -> None:
    source = StreamSource(io.BytesIO(b"x" * 1_000_000))
    assert b"".join(source.chunks()) == b"x" * 1_000_000
    source.close()


def test_a_broken_connection_gives_one_clear_error() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
    # Closing with linger 0 is a reset.
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    server.close()
    source = StreamSource(near)
    with pytest.raises(SourceError, match="reading the stream failed: "):
        list(source.chunks())
    source.close()


def test_a_missing_file_is_an_error_before_the_screen_opens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        FileSource(tmp_path)
