# SPDX-License-Identifier: GPL-2.0-only
"""A filter as the rules of a flip table's chains: what matches, and what flips.

Must not send them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.capture.filter.nft import LENGTH, TRANSPORT, Check, Compiled
from ipttrace.capture.netlink.nft import wire
from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE

COUNTER: Final = b"flipped"
_ETHERTYPES: Final = (0x0800, 0x86DD)


@dataclass(frozen=True, slots=True)
class FlipRules:
    """Packets that any of `matches`, nft expressions, matches are flipped.

    `filtered`: there is a filter, which can match packets of IP only.
    """

    matches: tuple[bytes, ...]
    filtered: bool = True

    @classmethod
    def of(cls, compiled: Compiled) -> FlipRules:
        """What nf_tables' own expressions can say of a filter."""
        matches = tuple(b"".join(map(_expressions, checks)) for checks in compiled.rules)
        return cls(matches, bool(compiled.program))

    def expressions(self, family: int) -> list[bytes]:
        """Those of each rule of a chain of this family, NFPROTO_*."""
        if family == NFPROTO_ARP and self.filtered:
            return []
        flip = wire.count(COUNTER) + wire.trace() + wire.accept()
        rules = []
        if family == NFPROTO_BRIDGE and self.filtered:
            # The filter reads IP headers: other protocols' bytes could match by accident.
            rules.append(wire.no_ethertype_of(*_ETHERTYPES) + wire.accept())
        return rules + [match + flip for match in self.matches]


def _expressions(check: Check) -> bytes:
    """The nft expressions of a filter's check."""
    base, offset, size = check.load
    if base == LENGTH:
        load = wire.load_length()
    else:
        header = wire.TRANSPORT_HEADER if base == TRANSPORT else wire.NETWORK_HEADER
        load = wire.load_payload(header, offset, size)
    return load + wire.compare(size, check.mask, check.compares)
