# SPDX-License-Identifier: GPL-2.0-only
"""A terminal, of which nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """High enough for the detail of a complete journey."""
    terminal = Terminal(tmp_path, 150, 80)
    left: list[str] = []
    try:
        yield terminal
    finally:
        left = terminal.close()
    assert left == []
