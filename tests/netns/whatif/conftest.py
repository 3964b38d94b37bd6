# SPDX-License-Identifier: GPL-2.0-only
"""A folder that every user can read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ipttrace-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
