# SPDX-License-Identifier: GPL-2.0-only
"""Containers, by the pid of a process in them or from inside, and an end right after traffic."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.loopback import ROWS, LoopbackNamespace
from tests.netns.netlink_lab import Row, tally, tracing, unknown

SEEN = {"OUTPUT t out:1 out:2/policy ACCEPT": 23, "INPUT t in:1 ACCEPT": 23}
RULE = "udp dport 9 counter accept"
ROUNDS = 5


@pytest.fixture(params=[False, True], ids=["roots", "an ordinary user's"])
def space(request: pytest.FixtureRequest) -> Iterator[LoopbackNamespace]:
    if os.geteuid() != 0 or not shutil.which("nft"):
        pytest.skip("namespaces with rules need root and nft")
    with LoopbackNamespace(user=request.param) as one:
        yield one


def texts(rows: list[Row]) -> Counter[str | None]:
    return Counter(row["rule"] for row in rows if row["match"] == "rule")


def pid_in(space: LoopbackNamespace) -> str:
    """Of a process that is in the namespace, as docker inspect would tell it."""
    if space.name.isdecimal():
        return space.name
    (pid,) = space.run("sh", "-c", "sleep 600 >/dev/null 2>&1 </dev/null & echo $!").split()
    return pid


def test_a_container_is_traced_by_the_pid_of_a_process_in_it(
    space: LoopbackNamespace, tmp_path: Path
) -> None:
    pid = pid_in(space)
    try:
        with tracing(tmp_path, pid) as tracer:
            space.send(23)
            tracer.wait(ROWS * 23)
            rows = tracer.finish()
    finally:
        if pid != space.name:
            os.kill(int(pid), 15)
    assert tally(rows) == SEEN
    assert texts(rows) == {RULE: 23}
    assert {row["netns"] for row in rows} == {space.inode}
    assert unknown(rows)


def test_who_is_root_in_a_container_alone_traces_it_from_there(
    space: LoopbackNamespace, tmp_path: Path
) -> None:
    with tracing(tmp_path, None, before=space.enter) as tracer:
        space.send(23)
        tracer.wait(ROWS * 23)
        rows = tracer.finish()
    assert tally(rows) == SEEN
    assert texts(rows) == {RULE: 23}
    # AND nothing stays there
    assert space.tables() == ["table ip t"]


def test_an_end_right_after_the_traffic_costs_neither_a_row_nor_its_text(
    space: LoopbackNamespace, tmp_path: Path
) -> None:
    for turn in range(ROUNDS):
        with tracing(tmp_path / str(turn), space.name) as tracer:
            # WHEN Ctrl-C comes before anything was printed
            space.send(23)
            rows = tracer.finish()
        # THEN all is there
        assert tally(rows) == SEEN
        assert texts(rows) == {RULE: 23}
