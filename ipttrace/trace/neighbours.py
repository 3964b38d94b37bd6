# SPDX-License-Identifier: GPL-2.0-only
"""Neighbour tables over time: what NEIGHBOURS frames said.

Must not do I/O.
"""

from __future__ import annotations

from typing import Any


class Neighbours:
    """The newest tables of each namespace, and rates from those before."""

    def feed(self, tables: dict[str, Any]) -> None:
        """Take a NEIGHBOURS frame."""
