# SPDX-License-Identifier: GPL-2.0-only
"""Waiting works with any descriptor, also above those that select(2) knows."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.ready import readable, writable
from tests.paths import PROJECT


@pytest.fixture
def high() -> Iterator[tuple[int, int]]:
    """A pipe whose ends have numbers above 1,024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 1100:
        pytest.skip("the hard limit of descriptors is too low here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1100), before[1]))
    ours, theirs = os.pipe()
    os.dup2(ours, 1060)
    os.dup2(theirs, 1061)
    yield 1060, 1061
    for fd in (ours, theirs, 1060, 1061):
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_descriptors_above_1024_are_waited_for(high: tuple[int, int]) -> None:
    ours, theirs = high
    assert readable(ours, timeout=0) == []
    assert writable(theirs, timeout=0)
    os.write(theirs, b"x")
    assert readable(ours, timeout=60) == [ours]
    assert readable(timeout=0.001) == []


@pytest.mark.parametrize("file", sorted((PROJECT / "ipttrace").rglob("*.py")), ids=str)
def test_nothing_waits_with_select(file: Path) -> None:
    assert "select.select(" not in file.read_text()
