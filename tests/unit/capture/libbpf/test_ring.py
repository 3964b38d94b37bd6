# SPDX-License-Identifier: GPL-2.0-only
"""Records are read from the ring as the kernel lays them out, across its end too."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from ipttrace.capture.libbpf.ring import Ring

PAGE = os.sysconf("SC_PAGESIZE")
SIZE = 4 * PAGE


class Kernel:
    """The writer's end: a file with the layout of a ring's mapping."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self._memory = mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE)
        self._end = 0

    def write(self, data: bytes, flags: int = 0) -> None:
        """Appends a record, as the kernel does: rounded up to 8 bytes."""
        record = struct.pack("=II", len(data) | flags, self.page()) + data
        record += b"\0" * (-len(record) % 8)
        for at, byte in enumerate(record):
            place = 2 * PAGE + (self._end + at) % SIZE
            self._memory[place] = self._memory[place + SIZE] = byte
        self._end += len(record)
        self._memory[PAGE : PAGE + 8] = struct.pack("=Q", self._end)

    def page(self) -> int:
        """What the next record's header has for its page, which is not the ring's first."""
        return 3 + self._end % SIZE // PAGE

    def read_to(self) -> int:
        return int(struct.unpack("=Q", self._memory[:8])[0])

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    one = Kernel()
    yield one
    one.close()


def taken(ring: Ring) -> list[bytes]:
    words, starts, lengths = ring.take()
    pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
    return [words[at:].tobytes()[:length] for at, length in pairs]


def test_all_records_are_read_once_and_in_order_across_the_end(kernel: Kernel) -> None:
    ring = Ring(kernel.fd, SIZE)
    assert taken(ring) == []
    # GIVEN more than the ring holds, in portions that it does
    for turn in range(23):
        written = [bytes([turn, one]) * (1000 + one) for one in range(7)]
        for data in written:
            kernel.write(data)
        # THEN each portion comes back, and its room is given back
        assert taken(ring) == written
        assert taken(ring) == []
    assert kernel.read_to() > SIZE
    ring.close()


def test_a_record_that_is_being_written_holds_up_those_behind_it(kernel: Kernel) -> None:
    # GIVEN a record, one that was discarded, one that is not complete, and another
    ring = Ring(kernel.fd, SIZE)
    kernel.write(b"first")
    kernel.write(b"nothing", 1 << 30)
    kernel.write(b"later", 1 << 31)
    kernel.write(b"last")
    # THEN only the first is read
    assert taken(ring) == [b"first"]
    assert kernel.read_to() == 32
    ring.close()


def test_words_that_look_like_headers_do_not_mislead(kernel: Kernel) -> None:
    # GIVEN records full of words that headers may have, with lengths that lead anywhere
    ring = Ring(kernel.fd, SIZE)
    written = []
    for length in (0, 8, 16, 100, 900, 1 << 29, 1 << 30 | 8, 1 << 31 | 8):
        for _ in range(3):
            written.append(struct.pack("=II", length, kernel.page()) * 60)
            kernel.write(written[-1])
    # THEN they are read as they were written
    assert taken(ring) == written
    assert taken(ring) == []
    ring.close()


def test_a_torn_length_ends_at_what_was_written(kernel: Kernel) -> None:
    # GIVEN headers that no kernel writes, in a few records and in many
    ring = Ring(kernel.fd, SIZE)
    for count in (1, 12):
        for _ in range(count):
            kernel.write(b"good" * 100)
        kernel.write(struct.pack("=II", 1 << 29, 77), 1 << 28)
        # THEN the good ones are read, and reading goes on behind the others
        assert taken(ring) == [b"good" * 100] * count
        kernel.write(b"next")
        assert taken(ring) == [b"next"]
    ring.close()


def test_what_is_only_looked_at_stays_until_it_is_released(kernel: Kernel) -> None:
    ring = Ring(kernel.fd, SIZE)
    kernel.write(b"12345678")
    for _ in range(2):
        assert ring.look()[0][1:].tobytes() == b"12345678"
        assert kernel.read_to() == 0
    ring.release()
    assert kernel.read_to() == 16
    assert taken(ring) == []
    ring.close()
