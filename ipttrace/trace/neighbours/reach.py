# SPDX-License-Identifier: GPL-2.0-only
"""Can a packet reach its next hop?

The route with the longest prefix gives the next hop; the neighbour table says whether
that is reachable.  The answer is unknown unless it is certain: policy routing, routes
beyond those in the frame, or the kind of device may change the outcome.  Must not do I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from ipttrace.trace.neighbours.frames import Device, Neighbour, Route

_UNICAST: Final = 1  # RTN_UNICAST
_LOCAL, _MAIN, _DEFAULT = 255, 254, 253  # RT_TABLE_*; in the order of the kernel's rules
_NOT_RESOLVED: Final = 0x8 | 0x80  # IFF_LOOPBACK, IFF_NOARP
_BITS: Final = {4: 32, 6: 128}
_MOST_ANSWERS: Final = 4096

# A neighbour that is merely absent may just have been forgotten by the kernel.
UNRESOLVED: Final = ("FAILED", "INCOMPLETE")

_USABLE: Final = {
    "REACHABLE": True,
    "STALE": True,
    "DELAY": True,
    "PROBE": True,
    "NOARP": True,
    "PERMANENT": True,
    "FAILED": False,
    "INCOMPLETE": False,
    "absent": False,
}


def can_resolve(state: str) -> bool | None:
    """Whether a neighbour in this state (NUD_* in words) has an address; None: unknown."""
    return _USABLE.get(state)


@dataclass(frozen=True, slots=True)
class Reach:
    """A packet's next hop and the state of its neighbour entry."""

    state: str  # NUD_* in words, "absent" (no such neighbour) or "unknown"
    via: str | None = None  # the next hop: the destination itself or a gateway
    dev: str | None = None  # the device that leads to it

    @property
    def usable(self) -> bool | None:
        """False: the packet cannot be sent even if it is accepted.  None: unknown."""
        return can_resolve(self.state)

    @property
    def unresolved(self) -> str:
        """The protocol that gets no answer from the next hop: ARP or ND; otherwise ""."""
        if self.state not in UNRESOLVED:
            return ""
        return "ND" if ":" in (self.via or "") else "ARP"


UNKNOWN: Final = Reach("unknown")

# By prefix length, longest first: network (shifted) → routes, best first.
_Trie = list[tuple[int, dict[int, list[Route]]]]


class Resolver:
    """The routes and neighbours of a namespace at one time."""

    def __init__(
        self,
        devices: Mapping[int, Device],
        neighbours: Mapping[tuple[int, str, int, bool], Neighbour],
        routes: tuple[Route, ...],
        totals: Mapping[str, int],
    ) -> None:
        self._devices = devices
        self._neighbours = neighbours
        self._answers: dict[tuple[str, str | None], Reach] = {}
        self._all_routes = totals.get("routes", 0) <= len(routes)
        self._all_neighbours = totals.get("neighbours", 0) <= len(neighbours)
        self._policy = totals.get("rules", 0) > 0
        found: dict[tuple[int, int], dict[int, dict[int, list[Route]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for route in routes:
            shift = _BITS[route.family] - route.length
            found[route.family, route.table][route.length][route.network >> shift].append(route)
        self._tries: dict[tuple[int, int], _Trie] = {}
        for where, lengths in found.items():
            for networks in lengths.values():
                for several in networks.values():
                    several.sort(key=lambda route: route.metric)
            self._tries[where] = sorted(lengths.items(), reverse=True)

    def usable(self, dst: str, out_dev: str | None) -> Reach:
        """As `Neighbours.usable`."""
        if (answer := self._answers.get((dst, out_dev))) is None:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            answer = self._answers[dst, out_dev] = self._resolve(dst, out_dev)
        return answer

    def _resolve(self, dst: str, out_dev: str | None) -> Reach:
        try:
            address = ip_address(dst)
        except ValueError:
            return UNKNOWN
        if address.is_multicast or address.is_unspecified or not self._all_routes:
            return UNKNOWN
        if self._policy and out_dev is None:
            return UNKNOWN  # a rule may select another table
        several = [
            self._neighbour(str(address), device, via)
            for device, via in self._hops(address.version, int(address), out_dev)
        ]
        answers = {reach.usable for reach in several}
        # Which of several hops the packet takes is unknown; what holds for all is certain.
        return several[0] if len(answers) == 1 else UNKNOWN

    def _hops(self, family: int, address: int, out_dev: str | None) -> list[tuple[int, str | None]]:
        """Returns the hops that a packet may take: device, gateway; empty if it needs none."""
        for table in (_LOCAL, _MAIN, _DEFAULT):
            for length, networks in self._tries.get((family, table), ()):
                routes = networks.get(address >> (_BITS[family] - length), ())
                hops: list[tuple[int, str | None]] = []
                metric: int | None = None
                for route in routes:
                    if metric is not None and route.metric != metric:
                        break
                    if route.type != _UNICAST:
                        return hops
                    fits = [hop for hop in route.hops if out_dev in (None, self._name(hop[0]))]
                    if fits:
                        metric = route.metric
                        hops += fits
                if hops:
                    return hops
        return []

    def _name(self, index: int) -> str | None:
        device = self._devices.get(index)
        return None if device is None else device.name

    def _neighbour(self, dst: str, index: int, gateway: str | None) -> Reach:
        device = self._devices.get(index)
        if device is None or device.flags & _NOT_RESOLVED:
            return UNKNOWN
        via = gateway or dst
        family = 6 if ":" in via else 4
        if (neighbour := self._neighbours.get((family, via, index, False))) is not None:
            return Reach(neighbour.state, via, device.name)
        return Reach("absent" if self._all_neighbours else "unknown", via, device.name)
