# SPDX-License-Identifier: GPL-2.0-only
"""Where things stand: the project, the tests' recordings."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT / "tests" / "data"
LAB = DATA / "lab.iptr"
