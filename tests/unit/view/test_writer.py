# SPDX-License-Identifier: GPL-2.0-only
"""The writer behind `| head`, a slow reader, a full disk; and the summary line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ipttrace.view.writer import OutputError, Writer, summary


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            assert fd == ends[0]  # closed by the test


def test_rows_arrive_immediately(pipe: tuple[int, int]) -> None:
    # GIVEN a writer on a pipe, WHEN it writes
    assert Writer(pipe[1]).write("é\n")
    # THEN the reader gets it without a flush
    assert os.read(pipe[0], 100) == "é\n".encode()


def test_a_reader_that_has_gone_closes_the_writer_silently(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    assert not writer.reader_gone()
    # GIVEN a pipe whose reader has gone
    os.close(pipe[0])
    # WHEN more is written THEN `write` returns False each time and does not raise
    assert not writer.write("row\n")
    assert writer.closed
    assert not writer.write("row\n")


def test_a_reader_that_has_gone_is_noticed_before_the_first_row(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    os.close(pipe[0])
    assert writer.reader_gone()
    assert writer.closed


def test_a_slow_reader_of_a_non_blocking_pipe_gets_all_rows(pipe: tuple[int, int]) -> None:
    # GIVEN a non-blocking pipe, and more text than it holds
    os.set_blocking(pipe[1], False)
    text = "".join(f"row {number}\n" for number in range(40_000))
    got = bytearray()

    def read() -> None:
        while len(got) < len(text):
            got.extend(os.read(pipe[0], 4096))

    reader = threading.Thread(target=read)
    reader.start()
    # WHEN it is written while a reader takes a little at a time
    assert Writer(pipe[1]).write(text)
    reader.join()
    # THEN all of it arrives, in order
    assert got.decode() == text


def test_a_full_disk_is_reported_in_one_line() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OutputError) as caught:
        Writer(full.fileno()).write("row\n")
    assert str(caught.value) == "cannot write the rows: No space left on device"


def test_a_terminal_with_another_encoding_gets_escapes(pipe: tuple[int, int]) -> None:
    assert Writer(pipe[1], "latin-1").write("é→\n")
    assert os.read(pipe[0], 100) == b"\xe9\\u2192\n"


def test_behind_head_the_summary_is_printed_and_the_exit_status_is_0() -> None:
    # GIVEN a run that writes rows until its reader has gone, then the summary
    program = (
        "import sys; from ipttrace.view.writer import Writer, summary\n"
        "writer = Writer()\n"
        "while writer.write('row\\n' * 1000): pass\n"
        "print(summary({'rows': 1000, 'engine': 'kernel'}), file=sys.stderr)\n"
    )
    # WHEN its reader takes three lines and closes the pipe
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stderr is not None
    assert [run.stdout.readline() for _ in range(3)] == [b"row\n"] * 3
    run.stdout.close()
    # THEN stderr has the summary and nothing else
    printed = run.stderr.read()
    run.stderr.close()
    assert printed == b"rows=1000 records=unknown lost=unknown missed=unknown engine=kernel\n"
    assert run.wait() == 0


def test_the_summary_is_one_line_in_a_fixed_order() -> None:
    figures = {"engine": "kernel", "missed": 0, "lost": 7, "records": 69, "rows": 23}
    assert summary(figures) == "rows=23 records=69 lost=7 missed=0 engine=kernel"


def test_an_unknown_figure_in_the_summary_is_unknown_not_0() -> None:
    assert summary({"rows": 1, "lost": None, "engine": "a b\n\x1b"}) == (
        "rows=1 records=unknown lost=unknown missed=unknown engine=a_b\\x0a\\x1b"
    )
