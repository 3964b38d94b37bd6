# SPDX-License-Identifier: GPL-2.0-only
"""How long a test waits for an event before it fails.

It is no limit for what is tested: only a guest in which nothing happens any more reaches it.
"""

from __future__ import annotations

from tests.vm.kernel_log import LOCKDEP

PATIENCE = 180.0 if not LOCKDEP.exists() else 400.0
"""Seconds.  A slow guest needs a fraction of it; a debug kernel is several times slower."""
