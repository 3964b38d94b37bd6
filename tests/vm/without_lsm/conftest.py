# SPDX-License-Identifier: GPL-2.0-only
"""Tests that need a kernel into which nothing was loaded yet: see tests/boot."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("IPTTRACE_WITHOUT_LSM") == "1" else ["test_*.py"]
