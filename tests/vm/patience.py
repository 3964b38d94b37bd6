# SPDX-License-Identifier: GPL-2.0-only
"""How long a test waits for an event before it fails.

It is no limit for what is tested: only a guest in which nothing happens any more reaches it.
"""

from __future__ import annotations

from tests.program import PATIENCE

__all__ = ["PATIENCE"]
