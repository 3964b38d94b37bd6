# SPDX-License-Identifier: GPL-2.0-only
"""Packets, drops and costs of each flow, and where it was dropped.

A packet is a journey, counted with its first row.  Must not do I/O, and must not loop
over rows in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ipttrace.netfilter import DROP
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.row import Step
from ipttrace.trace.store import Names, Part, address
from ipttrace.trace.tally.row_facts import OUTCOMES, begins_journey, capped_costs, outcomes
from ipttrace.trace.tally.slots import OTHER, Slots

# A slot takes 170 bytes.
LIMIT: Final = 100_000
ORDERS: Final = ("packets", "drops", "cost", "bytes")


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
    "max_cost": ("i8", ()),
    "first": ("i8", ()),
    "last": ("i8", ()),
    "verdict": ("u1", ()),  # index into OUTCOMES, of its last row
    "drop_table": ("u4", ()),  # this and the next: of its last drop; ids of Names
    "drop_chain": ("u4", ()),
    "drop_rulenum": ("u4", ()),
    "drop_match": ("u1", ()),
}
_ADDED: Final = ("packets", "rows", "bytes", "drops", "cost")
_FIRST: Final = ("host", "flow", "netns", "version", "proto", "src", "dst", "sport", "dport")


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
    cost_ns: int  # sum over its rows
    max_cost_ns: int  # of a row
    first: int  # ns since the epoch
    last: int
    verdict: str  # of its newest row
    dropped_table: str  # where its newest drop was decided; "" if none
    dropped_at: Step | None


@dataclass(frozen=True, slots=True)
class OtherFlows:
    """Sums over evicted flows."""

    flows: int
    packets: int
    rows: int
    bytes: int
    drops: int
    cost_ns: int


class FlowsTally:
    """Counts of the `limit` flows that had rows last."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.slots = Slots(limit, _COLUMNS, _ADDED)
        self.version = 0  # increases with every part counted
        self._hash = Hash(3)

    def __len__(self) -> int:
        return len(self.slots)

    def feed(self, part: Part) -> None:
        """Count the rows of a part."""
        if not len(part):
            return
        self.version += 1
        columns = part.columns
        flow = columns["flow"]
        keys = self._hash.full(
            [flow >> np.uint64(32), flow & np.uint64(0xFFFFFFFF), columns["host"]]
        )
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        slots, at, fresh = self.slots.assign(keys[starts])
        held = self.slots.columns
        if len(fresh):
            self._add_flows(part, order[starts[at]], fresh)
        self._count(columns, order, starts, slots)
        last = order[np.append(starts[1:], len(order)) - 1]
        held["verdict"][slots] = outcomes(columns["verdict"][last])
        self._note_drops(columns, order, starts, slots)

    def _add_flows(self, part: Part, rows: Array, slots: Array) -> None:
        """Fill the columns of new flows' slots from their first rows."""
        held, columns = self.slots.columns, part.columns
        for name in _FIRST:
            held[name][slots] = columns[name][rows]
        held["known"][slots] = columns["known"][rows]
        held["first"][slots] = columns["time"][rows]

    def _count(self, columns: dict[str, Array], order: Array, starts: Array, slots: Array) -> None:
        begins, cost = begins_journey(columns), capped_costs(columns)
        sums = {
            "packets": begins.astype(np.int64),
            "bytes": np.where(begins, columns["len"], 0).astype(np.int64),
            "drops": (columns["verdict"] & 0xFF == DROP).astype(np.int64),
            "cost": cost,
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
        dropped = columns["verdict"][order] & 0xFF == DROP
        if not dropped.any():
            return
        # Index in `order` of each flow's last dropped row.
        newest = np.maximum.reduceat(np.where(dropped, np.arange(len(order)), -1), starts)
        some = newest >= 0
        rows, slots = order[newest[some]], slots[some]
        held = self.slots.columns
        for name in ("table", "chain", "rulenum", "match"):
            held[f"drop_{name}"][slots] = columns[name][rows]

    @property
    def other(self) -> OtherFlows:
        """Sums over the flows that were evicted."""
        held = self.slots.columns
        sums = [int(held[name][OTHER]) for name in _ADDED]
        return OtherFlows(self.slots.evicted, *sums)

    def top(self, order: str, count: int, names: Names) -> list[Flow]:
        """The top `count` flows by one of ORDERS, "max_cost" or "last", largest first.

        `names`: those of the store that was counted.
        """
        live = self.slots.live
        if not len(live) or count < 1:
            return []
        held = self.slots.columns
        value = held[order][live]
        if count < len(live):
            some = np.argpartition(value, len(live) - count)[len(live) - count :]
            live, value = live[some], value[some]
        # Among equals the first seen comes first, so that lines do not swap.
        live = live[np.lexsort((held["flow"][live], held["first"][live], -value))]
        return [self._flow(slot, names) for slot in live.tolist()]

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
            cost_ns=int(of["cost"]),
            max_cost_ns=int(of["max_cost"]),
            first=int(of["first"]),
            last=int(of["last"]),
            verdict=OUTCOMES[int(of["verdict"])],
            dropped_table=names.text(int(of["drop_table"])) if of["drops"] else "",
            dropped_at=at,
        )
