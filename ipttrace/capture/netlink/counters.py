# SPDX-License-Identifier: GPL-2.0-only
"""Sums of the counters of several namespaces.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass

from ipttrace.capture.netlink.namespace import TracedNamespace


@dataclass(slots=True)
class Counters:
    """Sums of the counters of several namespaces."""

    lost: int = 0
    flipped: int = 0
    begun: int = 0
    refused: int = 0
    undecided: int = 0
    broken: int = 0

    def add(self, namespace: TracedNamespace, flipped: int) -> None:
        self.lost += namespace.lost
        self.flipped += flipped
        self.begun += namespace.journeys.begun
        self.refused += namespace.refused
        self.undecided += namespace.undecided
        self.broken += namespace.broken

    def join(self, other: Counters) -> None:
        for name in Counters.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
