# SPDX-License-Identifier: GPL-2.0-only
"""Processes get numbers, and are described once."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ipttrace.capture.containers import Cgroups
from ipttrace.capture.sockets.processes import ProcessBook
from ipttrace.stream import record
from tests.data.stages import stage


def test_the_process_that_called_is_described_from_the_record_and_proc(tmp_path: Path) -> None:
    # GIVEN a cgroup as docker names it, and a stage that this process has caused in it
    name = "ab" * 32
    folder = tmp_path / f"docker-{name}.scope"
    folder.mkdir()
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "comm": b"py\x1b",
        "uid": 7,
        "cgroup": folder.stat().st_ino,
    }
    one = stage(record.ACCEPTED, flags=record.SK_F_PROCESS, levels=2, **fields)
    one["pids"][0, :2] = (os.getpid(), 3)
    book = ProcessBook(cgroups=Cgroups(tmp_path))
    # WHEN it is met twice
    numbers = book.numbers(np.concatenate([one, one]).astype(record.SOCKET_DTYPE))
    # THEN it has one number, and is described once
    assert numbers.tolist() == [1, 1]
    described = book.take()["1"]
    assert described["exe"] == os.path.realpath(sys.executable)
    assert (described["comm"], described["uid"]) == ("py\\x1b", 7)
    assert described["pids"] == [os.getpid(), 3]
    assert (described["runtime"], described["container"]) == ("docker", name)
    assert book.numbers(one).tolist() == [1]
    assert book.take() == {}


def test_one_that_is_gone_has_what_the_record_says(tmp_path: Path) -> None:
    one = stage(record.ACCEPTED, flags=record.SK_F_PROCESS, pid=9, comm=b"gone", levels=1)
    book = ProcessBook(tmp_path, Cgroups(tmp_path))
    assert book.numbers(one).tolist() == [1]
    assert book.take()["1"] == {"pid": 9, "comm": "gone", "uid": 0, "pids": [0]}


def test_a_listeners_owner_is_found_by_its_inode() -> None:
    with socket.socket() as listener:
        one = stage(record.SYN_TAKEN, owner=os.fstat(listener.fileno()).st_ino)
        book = ProcessBook()
        assert book.numbers(one).tolist() == [1]
        assert book.take()["1"]["pid"] == os.getpid()
    assert book.numbers(stage(record.SYN_TAKEN)).tolist() == [0]
