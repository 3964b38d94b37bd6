# SPDX-License-Identifier: GPL-2.0-only
"""Whose a socket is, as /proc shows it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from ipttrace.capture.drops import owners
from ipttrace.capture.drops.owners import Owners
from ipttrace.stream.messages import Owner


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def asked(from_: Owners, *inodes: int) -> tuple[list[int], dict[str, Owner]]:
    numbers, new = from_.numbers(np.array(inodes, np.uint64))
    return numbers.tolist(), new


@pytest.fixture(autouse=True)
def any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_PART", 1e9)


def test_a_socket_has_the_process_that_holds_it() -> None:
    found = Owners()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        comm = Path("/proc/self/comm").read_text().rstrip("\n")
        own = {"pid": os.getpid(), "comm": comm, "others": 0}
        nobody = (1 << 64) - 1
        assert asked(found, inode(one), 0, nobody, inode(one)) == ([1, 0, 0, 1], {"1": own})
        # AND is named once
        assert asked(found, inode(one)) == ([1], {})
        # WHEN a second socket is the same process's THEN it has the same number
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            assert asked(found, inode(other)) == ([1], {})


def test_of_several_processes_the_first_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        # GIVEN workers that have the listener of the process that started them
        kept = (one.fileno(),)
        workers = [subprocess.Popen(["sleep", "600"], pass_fds=kept) for _ in range(2)]
        try:
            _, new = asked(Owners(), inode(one))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    (owner,) = new.values()
    assert owner["pid"] == min(os.getpid(), *(worker.pid for worker in workers))
    assert owner["others"] == 2


def test_a_hostile_name_is_neutralised(tmp_path: Path) -> None:
    folder = tmp_path / "4242" / "fd"
    folder.mkdir(parents=True)
    (folder / "3").symlink_to("socket:[77]")
    (folder / "4").symlink_to("socket:[77x]")
    (tmp_path / "4242" / "comm").write_bytes(b"\x1b[31mred\xff\n")
    numbers, new = asked(Owners(tmp_path), 77, 78)
    assert numbers == [1, 0]
    assert new["1"]["comm"].isprintable()
    assert "\x1b" not in new["1"]["comm"]


def test_descriptors_are_read_for_a_small_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "_PART", 1e-9)
    found = Owners(tmp_path)
    assert asked(found, 1) == ([0], {})
    # WHEN a socket comes right after that THEN it is unknown, and nothing is read
    (tmp_path / "7" / "fd").mkdir(parents=True)
    (tmp_path / "7" / "fd" / "0").symlink_to("socket:[5]")
    assert asked(found, 5) == ([0], {})


def test_many_descriptors_are_read_in_several_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN more processes than can be read at once
    for pid in (3, 5, 7):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "fd" / "0").symlink_to(f"socket:[{pid}]")
        (tmp_path / str(pid) / "comm").write_text(f"number {pid}\n")
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(owners, "_LONGEST_READ", 2)
    found = Owners(tmp_path)
    # WHEN their sockets are met again and again
    seen = [asked(found, 3, 5, 7)[0] for _ in range(4)]
    # THEN each time the next processes are read
    assert [[bool(number) for number in one] for one in seen] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]
