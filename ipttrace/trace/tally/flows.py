# SPDX-License-Identifier: GPL-2.0-only
"""Packets, drops and costs of each flow, and where it was dropped.

A packet is a journey, counted with its first row.  Must not do I/O, and must not loop
over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.netfilter import DROP
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.calls import Aliases
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.drops.where import UNSPECIFIED
from ipttrace.trace.row import Step
from ipttrace.trace.store import Names, Part, address
from ipttrace.trace.tally.row_facts import (
    OUTCOMES,
    begins_journey,
    capped_costs,
    cost_known,
    dropped,
    outcomes,
)
from ipttrace.trace.tally.slots import OTHER, Slots

# A slot takes 170 bytes.
LIMIT: Final = 100_000
ORDERS: Final = (
    *("packets", "rows", "drops", "bytes", "cost", "max_cost", "last"),
    *("host", "netns", "proto", "ends", "verdict"),
)

_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "host": ("u1", ()),
    "flow": ("u8", ()),
    "netns": ("u4", ()),  # this and the next: of its first row
    "version": ("u1", ()),
    "proto": ("i2", ()),
    "src": ("u1", (16,)),
    "dst": ("u1", (16,)),
    "sport": ("u2", ()),
    "dport": ("u2", ()),
    "known": ("u1", ()),
    "packets": ("i8", ()),
    "rows": ("i8", ()),
    "bytes": ("i8", ()),
    "drops": ("i8", ()),
    "cost": ("i8", ()),
    "costed": ("i8", ()),  # rows whose cost is known
    "max_cost": ("i8", ()),
    "first": ("i8", ()),
    "last": ("i8", ()),
    "verdict": ("u1", ()),  # index into OUTCOMES, of its last row
    "drop_table": ("u4", ()),  # these: of its last drop; ids of Names
    "drop_chain": ("u4", ()),
    "drop_reason": ("u4", ()),
    "drop_place": ("u4", ()),
    "drop_rulenum": ("u4", ()),
    "drop_match": ("u1", ()),
}
_ADDED: Final = ("packets", "rows", "bytes", "drops", "cost", "costed")
_FIRST: Final = ("host", "flow", "netns", "version", "proto", "src", "dst", "sport", "dport")
_DROP: Final = (
    *("drop_table", "drop_chain", "drop_reason", "drop_place", "drop_rulenum", "drop_match"),
)


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow.  Text is safe for a terminal."""

    host: int
    flow: int  # 0: all packets without a known flow
    netns: int  # this, protocol and addresses as first seen
    proto: str
    src: str
    sport: int | None
    dst: str
    dport: int | None
    packets: int  # whose first row was counted
    rows: int
    bytes: int
    drops: int
    cost_ns: int | None  # sum over its rows; None: unknown of each
    max_cost_ns: int | None  # of a row
    first: int  # ns since the epoch
    last: int
    verdict: str  # of its newest row
    dropped_table: str  # where its newest drop was decided; "" if none
    dropped_at: Step | None
    dropped_why: str = ""  # the reason for a drop outside the tables, else its place


@dataclass(frozen=True, slots=True)
class OtherFlows:
    """Sums over evicted flows."""

    flows: int
    packets: int
    rows: int
    bytes: int
    drops: int
    cost_ns: int | None  # None: unknown of each


class FlowsTally:
    """Counts of the `limit` flows that had rows last."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.slots = Slots(limit, _COLUMNS, _ADDED)
        self.version = 0  # increases with every part counted
        self._hash = Hash(3)
        self._aliases: Aliases | None = None  # of the store that is counted
        self._joined = 0  # their version

    def __len__(self) -> int:
        return len(self.slots)

    def feed(self, part: Part) -> None:
        """Count the rows of a part."""
        if not len(part):
            return
        self.version += 1
        columns = part.columns
        self._aliases = part.aliases
        flows = part.flows
        keys = self._keys(flows, columns["host"])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        slots, at, fresh = self.slots.assign(keys[starts])
        held = self.slots.columns
        if len(fresh):
            rows = order[starts[at]]
            self._add_flows(part, rows, flows[rows], fresh)
        self._count(columns, order, starts, slots)
        by_outcome = outcomes(columns)
        last = np.append(starts[1:], len(order)) - 1
        if columns["what"].any():
            # What packets passed between the tables is no verdict.
            decided = ((columns["what"] == 0) | (by_outcome == DROP))[order]
            last = np.maximum.reduceat(np.where(decided, np.arange(len(order)), -1), starts)
            slots_of, last = slots[last >= 0], last[last >= 0]
            held["verdict"][slots_of] = by_outcome[order[last]]
        else:
            held["verdict"][slots] = by_outcome[order[last]]
        self._note_drops(columns, order, starts, slots)

    def _keys(self, flows: Array, hosts: Array) -> Array:
        return self._hash.full([flows >> np.uint64(32), flows & np.uint64(0xFFFFFFFF), hosts])

    def _join(self) -> None:
        """Adds up flows that turned out to be one."""
        aliases = self._aliases
        if aliases is None or aliases.version == self._joined:
            return
        self._joined = aliases.version
        held, live = self.slots.columns, self.slots.live
        roots = aliases.roots(held["flow"][live], held["first"][live])
        moved = np.flatnonzero(roots != held["flow"][live])
        if not moved.size:
            return
        slots = live[moved]
        held["flow"][slots] = roots[moved]
        pairs = self.slots.rekey(slots, self._keys(roots[moved], held["host"][slots]))
        # Few: flows of whose rows some had been counted already.
        for kept, gone in zip(*(some.tolist() for some in pairs), strict=True):
            older = held["first"][gone] < held["first"][kept]
            newer = held["last"][gone] >= held["last"][kept]
            dropped = held["drops"][gone] and (newer or not held["drops"][kept])
            taken = [*((*_FIRST, "known", "first") if older else ())]
            taken += ["verdict", "last"] if newer else []
            taken += _DROP if dropped else ()
            for name in taken:
                held[name][kept] = held[name][gone]
            for name in _ADDED:
                held[name][kept] += held[name][gone]
            held["max_cost"][kept] = max(held["max_cost"][kept], held["max_cost"][gone])
            for column in held.values():
                column[gone] = 0

    def _add_flows(self, part: Part, rows: Array, flows: Array, slots: Array) -> None:
        """Fill the columns of new flows' slots from their first rows."""
        held, columns = self.slots.columns, part.columns
        for name in _FIRST:
            held[name][slots] = columns[name][rows]
        held["flow"][slots] = flows
        held["known"][slots] = columns["known"][rows]
        held["first"][slots] = columns["time"][rows]

    def _count(self, columns: dict[str, Array], order: Array, starts: Array, slots: Array) -> None:
        begins, cost = begins_journey(columns), capped_costs(columns)
        sums = {
            "packets": begins.astype(np.int64),
            "bytes": np.where(begins, columns["len"], 0).astype(np.int64),
            "drops": dropped(columns).astype(np.int64),
            "cost": cost,
            "costed": cost_known(columns).astype(np.int64),
        }
        held = self.slots.columns
        added = {name: np.add.reduceat(some[order], starts) for name, some in sums.items()}
        added["rows"] = np.diff(np.append(starts, len(order)))
        # np.add.at, since several flows may share slot 0.
        for name, some in added.items():
            np.add.at(held[name], slots, some)
        np.maximum.at(held["max_cost"], slots, np.maximum.reduceat(cost[order], starts))
        times = columns["time"][order]
        np.maximum.at(held["last"], slots, np.maximum.reduceat(times, starts))

    def _note_drops(
        self, columns: dict[str, Array], order: Array, starts: Array, slots: Array
    ) -> None:
        died = dropped(columns)[order]
        if not died.any():
            return
        # Index in `order` of each flow's last dropped row.
        newest = np.maximum.reduceat(np.where(died, np.arange(len(order)), -1), starts)
        some = newest >= 0
        rows, slots = order[newest[some]], slots[some]
        held = self.slots.columns
        for name in _DROP:
            held[name][slots] = columns[name.removeprefix("drop_")][rows]

    @property
    def other(self) -> OtherFlows:
        """Sums over the flows that were evicted."""
        held = self.slots.columns
        sums = {name: int(held[name][OTHER]) for name in _ADDED}
        return OtherFlows(
            flows=self.slots.evicted,
            packets=sums["packets"],
            rows=sums["rows"],
            bytes=sums["bytes"],
            drops=sums["drops"],
            cost_ns=sums["cost"] if sums["costed"] else None,
        )

    def top(
        self,
        order: str,
        count: int,
        names: Names,
        *,
        ascending: bool = False,
        netns: Mapping[tuple[int, int], str] | None = None,
    ) -> list[Flow]:
        """The top `count` flows by one of ORDERS, largest first unless `ascending`.

        `names`: those of the store that was counted; `netns`: names of namespaces by
        host and inode, for the order of that name.
        """
        self._join()
        live = self.slots.live
        if not len(live) or count < 1:
            return []
        held = self.slots.columns
        value = self._values(order, live, netns or {})
        if not ascending:
            value = -value
        if count < len(live):
            some = np.argpartition(value, count - 1)[:count]
            live, value = live[some], value[some]
        # Among equals the first seen comes first, so that lines do not swap.
        live = live[np.lexsort((held["flow"][live], held["first"][live], value))]
        return [self._flow(slot, names) for slot in live.tolist()]

    def _values(self, order: str, live: Array, netns: Mapping[tuple[int, int], str]) -> Array:
        """What the slots `live` are sorted by, as i8; texts by their rank."""
        held = self.slots.columns
        if order == "ends":
            src = np.ascontiguousarray(held["src"][live]).view(">u8")
            parts = held["dport"], held["sport"], src[:, 1], src[:, 0], held["version"]
            keys = [part if len(part) == len(live) else part[live] for part in parts]
            return _ranks(np.lexsort(keys))
        if order == "verdict":
            return np.where(held["drops"][live] > 0, -1, held["verdict"][live]).astype(np.int64)
        if order not in ("proto", "netns"):
            return held[order][live].astype(np.int64)
        if order == "proto":
            pairs = held["proto"][live].astype(np.int64)
        else:
            pairs = held["host"][live].astype(np.int64) << 32 | held["netns"][live]
        kinds, of = np.unique(pairs, return_inverse=True)
        if order == "proto":
            texts = [ip.proto_name(kind) for kind in kinds.tolist()]
        else:
            texts = [
                netns.get((kind >> 32, kind & 0xFFFFFFFF)) or str(kind & 0xFFFFFFFF)
                for kind in kinds.tolist()
            ]
        ranks: Array = _ranks(np.array(sorted(range(len(texts)), key=texts.__getitem__)))[of]
        return ranks

    def _flow(self, slot: int, names: Names) -> Flow:
        of = {name: column[slot] for name, column in self.slots.columns.items()}
        version = int(of["version"])
        ports = bool(of["known"] & packet.PORTS)
        at = None
        if of["drop_chain"]:
            match = int(of["drop_match"])
            at = Step(
                names.text(int(of["drop_chain"])),
                int(of["drop_rulenum"]),
                record.MATCHES[match] if match < len(record.MATCHES) else str(match),
            )
        return Flow(
            host=int(of["host"]),
            flow=int(of["flow"]),
            netns=int(of["netns"]),
            proto=ip.proto_name(int(of["proto"])),
            src=address(of["src"].tobytes(), version),
            sport=int(of["sport"]) if ports else None,
            dst=address(of["dst"].tobytes(), version),
            dport=int(of["dport"]) if ports else None,
            packets=int(of["packets"]),
            rows=int(of["rows"]),
            bytes=int(of["bytes"]),
            drops=int(of["drops"]),
            cost_ns=int(of["cost"]) if of["costed"] else None,
            max_cost_ns=int(of["max_cost"]) if of["costed"] else None,
            first=int(of["first"]),
            last=int(of["last"]),
            verdict=OUTCOMES[int(of["verdict"])],
            dropped_table=names.text(int(of["drop_table"])) if of["drops"] else "",
            dropped_at=at,
            dropped_why=_why(of, names) if of["drops"] and not of["drop_table"] else "",
        )


def _why(of: Mapping[str, Any], names: Names) -> str:
    reason, place = (names.text(int(of[name])) for name in ("drop_reason", "drop_place"))
    return place if reason in UNSPECIFIED else reason


def _ranks(order: Array) -> Array:
    """The place of each index in `order`, which is what argsort returns; i8."""
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
