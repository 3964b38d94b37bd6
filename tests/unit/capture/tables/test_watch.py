# SPDX-License-Identifier: GPL-2.0-only
"""The watch looks at a bounded number of namespaces, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ipttrace.capture import netns
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.tables import watch
from ipttrace.capture.tables.watch import MOST, TableWatch


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, str]]:
    """Namespaces that can be changed; those below 0 cannot be entered."""
    held = {number: (f"ns{number}", f"/run/netns/ns{number}") for number in range(1, 6)}

    @contextmanager
    def inside(path: str, inode: int) -> Iterator[None]:
        if inode > 1 << 20:
            raise PermissionError(1, "Operation not permitted")
        yield

    monkeypatch.setattr(netns, "traced", lambda home, only: dict(held))
    monkeypatch.setattr(netns, "inside", inside)
    monkeypatch.setattr(watch, "_TABLES", {"ipv4": lambda: {"queues": 1}, "conntrack": dict})
    return held


def looked(one: TableWatch) -> tuple[list[dict[str, Any]], str]:
    """The frames of a look, and what failed."""
    found: list[dict[str, Any]] = []
    try:
        found.extend(dict(message) for _, message in one.look())
    except CaptureError as error:
        return found, str(error)
    return found, ""


def test_each_table_of_a_namespace_is_a_frame_and_what_is_absent_is_none(
    many: dict[int, tuple[str, str]],
) -> None:
    frames, failed = looked(TableWatch())
    assert failed == ""
    assert [frame.get("netns") for frame in frames] == [1, 2, 3, 4, 5, None]
    assert {frame.get("table") for frame in frames} == {"ipv4", None}
    assert len({frame["mono"] for frame in frames}) == 1


def test_beyond_the_limit_namespaces_are_left_out_with_a_note(
    many: dict[int, tuple[str, str]],
) -> None:
    many |= dict.fromkeys(range(1, MOST + 2), ("", ""))
    frames, failed = looked(TableWatch())
    assert len(frames) == MOST + 1
    assert failed == (
        "513 network namespaces: reassembly and conntrack are watched in 512 of them;"
        " choose one with --netns"
    )


def test_a_namespace_that_cannot_be_entered_is_reported_and_the_others_are_read(
    many: dict[int, tuple[str, str]],
) -> None:
    one = TableWatch()
    looked(one)
    many[1 << 21] = "shut", ""
    del many[2]
    frames, failed = looked(one)
    assert failed == "network namespace shut cannot be read: Operation not permitted"
    assert frames[0]["gone"] == [2]
    assert set(frames[-1]) == {"mono"}
