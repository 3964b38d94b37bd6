# SPDX-License-Identifier: GPL-2.0-only
"""Tracing a container by the pid of a process, or from inside, and ending right after traffic."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.loopback import ROWS, LoopbackNamespace
from tests.netns.netlink_lab import Row, tally, tracing, unknown_is_empty

SEEN = {"OUTPUT t out:1 out:2/policy ACCEPT": 23, "INPUT t in:1 ACCEPT": 23}
RULE = "udp dport 9 counter accept"
ROUNDS = 5


@pytest.fixture(params=[False, True], ids=["root's", "an ordinary user's"])
def namespace(request: pytest.FixtureRequest) -> Iterator[LoopbackNamespace]:
    if os.geteuid() != 0 or not shutil.which("nft"):
        pytest.skip("namespaces with rules need root and nft")
    with LoopbackNamespace(user=request.param) as one:
        yield one


def texts(rows: list[Row]) -> Counter[str | None]:
    return Counter(row["rule"] for row in rows if row["match"] == "rule")


def pid_in(namespace: LoopbackNamespace) -> str:
    """The pid of a process in the namespace, as docker inspect would print it."""
    if namespace.name.isdecimal():
        return namespace.name
    (pid,) = namespace.run("sh", "-c", "sleep 600 >/dev/null 2>&1 </dev/null & echo $!").split()
    return pid


def test_a_container_is_traced_by_the_pid_of_a_process_in_it(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    pid = pid_in(namespace)
    try:
        with tracing(tmp_path, pid) as tracer:
            namespace.send(23)
            tracer.wait(ROWS * 23)
            rows = tracer.finish()
    finally:
        if pid != namespace.name:
            os.kill(int(pid), 15)
    assert tally(rows) == SEEN
    assert texts(rows) == {RULE: 23}
    assert {row["netns"] for row in rows} == {namespace.inode}
    assert unknown_is_empty(rows)


def test_root_of_a_container_alone_can_trace_it_from_inside(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    with tracing(tmp_path, None, before=namespace.enter) as tracer:
        namespace.send(23)
        tracer.wait(ROWS * 23)
        rows = tracer.finish()
    assert tally(rows) == SEEN
    assert texts(rows) == {RULE: 23}
    # AND nothing is left behind
    assert namespace.tables() == ["table ip t"]


def test_ctrl_c_right_after_the_traffic_loses_neither_a_row_nor_its_text(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    for turn in range(ROUNDS):
        with tracing(tmp_path / str(turn), namespace.name) as tracer:
            # WHEN Ctrl-C comes before a row was printed
            namespace.send(23)
            rows = tracer.finish()
        # THEN all rows are there
        assert tally(rows) == SEEN
        assert texts(rows) == {RULE: 23}
