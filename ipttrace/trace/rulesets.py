# SPDX-License-Identifier: GPL-2.0-only
"""The rules as they were: what RULES and COUNTERS frames said, by generation.

Must not do I/O.
"""

from __future__ import annotations

from typing import Any


class Rulesets:
    """Rules of all tables, in every generation that was seen."""

    def feed(self, rules: dict[str, Any]) -> None:
        """Take a RULES frame."""

    def feed_counters(self, counters: dict[str, Any]) -> None:
        """Take a COUNTERS frame."""

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """The rule's text in that generation, clean; None where it is not known."""
        return None
