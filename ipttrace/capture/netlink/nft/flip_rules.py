# SPDX-License-Identifier: GPL-2.0-only
"""A filter as the rules of a flip table's chains: what matches, and what flips.

Must not send them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ipttrace.capture.filter.nft import LENGTH, TRANSPORT, Check, Compiled
from ipttrace.capture.netlink.nft import wire
from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_NETDEV

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
        matches = tuple(
            b"".join(map(_expressions, sorted(checks, key=_cost))) for checks in compiled.rules
        )
        return cls(matches, bool(compiled.program))

    def expressions(self, family: int, carried: bytes = b"") -> list[bytes]:
        """Those of each rule of a chain of this family, NFPROTO_*.

        `carried`: a match of further packets, that were flipped elsewhere; b"": none.
        """
        if family == NFPROTO_ARP and self.filtered:
            return []
        flip = wire.count(COUNTER) + wire.trace() + wire.accept()
        rules = []
        if family in (NFPROTO_BRIDGE, NFPROTO_NETDEV) and self.filtered:
            # The filter reads IP headers: other protocols' bytes could match by accident.
            rules.append(wire.no_ethertype_of(*_ETHERTYPES) + wire.accept())
        further = [carried] if carried and self.filtered else []
        return rules + [match + flip for match in (*self.matches, *further)]


def _cost(check: Check) -> tuple[bool, bool]:
    """Checks that cost less and reject more packets come first: most packets are rejected.

    The kernel computes a mask by a call of its own; ports tell more packets apart than protocols.
    """
    base = check.load.base
    return not check.unmasked or base == LENGTH, base != TRANSPORT


def _expressions(check: Check) -> bytes:
    """The nft expressions of a filter's check."""
    base, offset, size = check.load
    if base == LENGTH:
        load = wire.load_length()
    else:
        header = wire.TRANSPORT_HEADER if base == TRANSPORT else wire.NETWORK_HEADER
        load = wire.load_payload(header, offset, size)
    return load + wire.compare(size, check.mask, check.compares)
