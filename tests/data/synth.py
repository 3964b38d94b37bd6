# SPDX-License-Identifier: GPL-2.0-only
"""Synthetic records of a busy router, for tests and benchmarks.

IPv4 and IPv6, several tables, user chains, conntrack with NAT, policies, REJECT's
answers within a call, reused skb addresses.  The same seed gives the same records.  Must
not read anything of this machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ipttrace.stream import record
from ipttrace.stream.messages import Hello
from ipttrace.stream.writer import Sink, Writer
from ipttrace.trace.arrays.picking import join
from tests.data import messages

Array = npt.NDArray[Any]

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
DROP, ACCEPT = 0, 1
RULE, RETURN, POLICY = range(3)

MONO = 5_000_000_000_000
WALL = messages.WALL
SPACING = 1_000  # ns from journey to journey; a call takes a little longer
_SKBS = 4096


class Call(NamedTuple):
    """One call of a scenario: its hits and its verdict."""

    hook: int
    table: str
    path: tuple[tuple[str, int, int], ...]  # chain, rulenum, match
    verdict: int = ACCEPT
    inside: int | None = None  # the call of the scenario during which it is made
    tracked: bool = True


@dataclass(frozen=True)
class Scenario:
    """The calls of one skb."""

    name: str
    family: int
    proto: int
    calls: tuple[Call, ...]
    devices: tuple[str, str] = ("eth0", "eth1")
    nat: bool = False


def _policy(hook: int, table: str, tracked: bool = True) -> Call:
    chain = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")[hook]
    return Call(hook, table, ((chain, 1, POLICY),), tracked=tracked)


_FORWARDED = (
    _policy(PREROUTING, "raw", tracked=False),
    Call(PREROUTING, "mangle", (("PREROUTING", 1, RULE), ("PREROUTING", 2, POLICY))),
    Call(PREROUTING, "nat", (("PREROUTING", 2, RULE), ("DOCKER", 3, RULE))),
    _policy(FORWARD, "mangle"),
    Call(
        FORWARD,
        "filter",
        (
            ("FORWARD", 1, RULE),
            ("DOCKER-USER", 4, RETURN),
            ("FORWARD", 2, RULE),
            ("DOCKER-ISOLATION-STAGE-1", 3, RETURN),
            ("FORWARD", 5, RULE),
        ),
    ),
    _policy(POSTROUTING, "mangle"),
    Call(POSTROUTING, "nat", (("POSTROUTING", 1, RULE),)),
)

SCENARIOS = (
    Scenario("forwarded tcp through DNAT", 2, 6, _FORWARDED, nat=True),
    Scenario(
        "incoming udp to an open port",
        2,
        17,
        (
            _policy(PREROUTING, "raw", tracked=False),
            _policy(PREROUTING, "mangle"),
            _policy(INPUT, "mangle"),
            Call(INPUT, "filter", (("INPUT", 3, RULE), ("services", 7, RULE))),
        ),
        devices=("eth0", ""),
    ),
    Scenario(
        "outgoing tcp over IPv6",
        10,
        6,
        (
            _policy(OUTPUT, "raw", tracked=False),
            _policy(OUTPUT, "mangle"),
            Call(OUTPUT, "filter", (("OUTPUT", 2, RULE), ("out6", 2, RETURN), ("OUTPUT", 4, RULE))),
            _policy(POSTROUTING, "mangle"),
        ),
        devices=("", "wlan0"),
    ),
    Scenario(
        "incoming udp over IPv6 that the policy drops",
        10,
        17,
        (
            _policy(PREROUTING, "raw", tracked=False),
            Call(INPUT, "filter", (("INPUT", 9, POLICY),), verdict=DROP),
        ),
        devices=("eth0", ""),
    ),
    Scenario(
        "incoming tcp that is rejected",
        2,
        6,
        (
            _policy(PREROUTING, "mangle"),
            Call(INPUT, "filter", (("INPUT", 5, RULE), ("reject", 1, RULE)), verdict=DROP),
            Call(OUTPUT, "filter", (("OUTPUT", 1, RULE),), inside=1),
        ),
        devices=("eth0", ""),
    ),
)


@dataclass(frozen=True)
class Records:
    """The records of a run, each kind in order of time."""

    entries: Array
    rules: Array
    exits: Array

    def __len__(self) -> int:
        return len(self.entries) + len(self.rules) + len(self.exits)

    def batches(self, size: int) -> Iterator[tuple[Array, Array, Array]]:
        """Yields batches of about `size` records: all up to one time, as an agent reads."""
        kinds = (self.entries, self.rules, self.exits)
        times = np.sort(np.concatenate([kind["time"] for kind in kinds]))
        done = [0, 0, 0]
        for moment in [*times[size - 1 :: size], times[-1]]:
            upto = [int(np.searchsorted(kind["time"], moment, "right")) for kind in kinds]
            if upto != done:
                entries, rules, exits = (
                    kind[a:b] for kind, a, b in zip(kinds, done, upto, strict=True)
                )
                yield entries, rules, exits
            done = upto


def hello() -> Hello:
    """The HELLO frame, without format and layout."""
    return messages.hello(
        kernel="6.1.0-synthetic",
        host="router",
        netns={"4026531840": "init"},
        clock={"mono": MONO, "wall": WALL},
    )


def counted(records: Records, lost: tuple[int, int, int] = (0, 0, 0)) -> dict[str, Any]:
    """What books that balance for these records contain."""
    delivered = [len(records.entries), len(records.rules), len(records.exits)]
    return {
        "calls": delivered[2],
        "matched": delivered[2],
        "silenced": delivered[1],
        "due": [a + b for a, b in zip(delivered, lost, strict=True)],
        "delivered": delivered,
        "lost": list(lost),
        "depth": 2,
    }


def write(sink: Sink, records: Records, size: int = 5000) -> None:
    """Writes a complete stream: HELLO, the records in batches, BOOKS, END."""
    writer = Writer(sink)
    writer.hello(hello())
    for batch in records.batches(size):
        for kind, some in enumerate(batch):
            writer.records(kind, some)
    writer.books(messages.books(**counted(records)))
    writer.end(messages.end(**counted(records)))


def make(calls: int, flows: int = 1000, seed: int = 1) -> Records:
    """At least `calls` calls (journeys are complete) in about `flows` flows."""
    rng = np.random.default_rng(seed)
    per_journey = sum(len(scenario.calls) for scenario in SCENARIOS) / len(SCENARIOS)
    journeys = max(1, int(np.ceil(calls / per_journey)))
    while True:
        kinds = rng.integers(0, len(SCENARIOS), journeys)
        sizes = np.array([len(scenario.calls) for scenario in SCENARIOS])[kinds]
        if int(sizes.sum()) >= calls:
            break
        journeys += 1 + (calls - int(sizes.sum())) // 4
    made = [
        _scenario(scenario, np.flatnonzero(kinds == at), rng, max(1, flows // len(SCENARIOS)), at)
        for at, scenario in enumerate(SCENARIOS)
    ]
    entries, rules, exits = (_joined(parts) for parts in zip(*made, strict=True))
    # So far, calls are numbered by journey and index; number them in order of time.
    entries = entries[np.argsort(entries["time"], kind="stable")]
    order = np.argsort(entries["call"])
    names = entries["call"][order]
    numbers = (order + 1).astype(np.uint64)
    for records in (rules, exits):
        records["call"] = numbers[np.searchsorted(names, records["call"])]
    nested = entries["parent"] != 0
    entries["parent"][nested] = numbers[np.searchsorted(names, entries["parent"][nested])]
    entries["call"] = np.arange(1, len(entries) + 1)
    return Records(
        entries,
        rules[np.argsort(rules["time"], kind="stable")],
        exits[np.argsort(exits["time"], kind="stable")],
    )


def _joined(parts: Sequence[Array]) -> Array:
    return join(parts, parts[0].dtype)


def _scenario(
    scenario: Scenario, journeys: Array, rng: np.random.Generator, flows: int, which: int
) -> tuple[Array, Array, Array]:
    """Entries, rules and exits of these journeys; call is journey * 16 + index + 1."""
    count = len(journeys)
    flow = rng.integers(0, flows, count)
    begin = MONO + journeys.astype(np.uint64) * np.uint64(SPACING)
    entries, rules, exits = [], [], []
    for index, call in enumerate(scenario.calls):
        lead = index if call.inside is None else call.inside
        time = begin + np.uint64(lead * 2_000 + (400 if call.inside is not None else 0))
        name = (journeys * 16 + index + 1).astype(np.uint64)
        entry = np.zeros(count, record.ENTRY_DTYPE)
        entry["call"] = name
        entry["time"] = time
        slots = (journeys % _SKBS).astype(np.uint64) + np.uint64(
            _SKBS if call.inside is not None else 0
        )
        entry["skb"] = np.uint64(0xFFFF888000000000) + slots * np.uint64(256)
        entry["netns"] = 4026531840
        entry["family"] = scenario.family
        entry["hook"] = call.hook
        entry["flags"] = record.F_SOFTIRQ | (
            record.F_FIRST if index == 0 or call.inside is not None else record.F_FOLLOWED
        )
        if call.inside is not None:
            entry["parent"] = journeys * 16 + call.inside + 1
            entry["depth"] = 1
        entry["table"] = call.table.encode()
        entry["pid"] = entry["tid"] = 700 + flow % 50
        entry["comm"] = np.char.add(b"worker/", (flow % 50).astype("S4"))
        entry["cpu"] = journeys % 2
        if call.hook in (PREROUTING, INPUT, FORWARD):
            entry["in"] = scenario.devices[0].encode()
            entry["in_ifindex"] = 2
            entry["mac_len"] = 14
            entry["mac"][:, :14] = np.frombuffer(
                bytes.fromhex("525400000002 525400000001 0800"), np.uint8
            )
        if call.hook in (FORWARD, OUTPUT, POSTROUTING):
            entry["out"] = scenario.devices[1].encode()
            entry["out_ifindex"] = 3
        rewritten = scenario.nat and call.hook in (FORWARD, POSTROUTING)
        _fill_packet(entry, scenario, flow, which, rewritten, call.inside is not None)
        if call.tracked:
            _fill_conntrack(entry, scenario, flow, which)
        entries.append(entry)
        for seq, (chain, rulenum, match) in enumerate(call.path):
            rule = np.zeros(count, record.RULE_DTYPE)
            rule["call"] = name
            rule["time"] = time + np.uint64(50 * (seq + 1))
            rule["rulenum"] = rulenum
            rule["seq"] = seq
            rule["match"] = match
            rule["table"] = call.table.encode()
            rule["chain"] = chain.encode()
            rules.append(rule)
        end = np.zeros(count, record.EXIT_DTYPE)
        end["call"] = name
        end["time"] = time + np.uint64(1_200 if call.inside is None else 500)
        end["skb"] = entry["skb"]
        end["cost"] = rng.integers(300, 3_000, count)
        end["verdict"] = call.verdict
        end["rules"] = len(call.path)
        end["flags"] = record.EXIT_F_ALIVE if call.verdict == ACCEPT else 0
        end["ct_info"] = entry["ct_info"]
        exits.append(end)
    return _joined(entries), _joined(rules), _joined(exits)


def _addresses(scenario: Scenario, flow: Array, which: int) -> tuple[Array, Array, Array, Array]:
    """Source, destination, translated destination (n, 16), source port."""
    count = len(flow)
    src, dst, real = (np.zeros((count, 16), np.uint8) for _ in range(3))
    if scenario.family == 2:
        for address, base in ((src, 10), (dst, 192), (real, 172)):
            address[:, 0] = base
            address[:, 1] = 16 + which
        src[:, 2], src[:, 3] = flow >> 8, flow & 0xFF
        dst[:, 3] = real[:, 3] = 1 + flow % 7
    else:
        for address, last in ((src, 1), (dst, 2)):
            address[:, :4] = (0x20, 0x01, 0x0D, 0xB8)
            address[:, 4] = which
            address[:, 15] = last
        src[:, 13], src[:, 14] = flow >> 8, flow & 0xFF
        real = dst.copy()
    return src, dst, real, (20_000 + flow % 40_000).astype(np.uint16)


def _fill_packet(
    entry: Array, scenario: Scenario, flow: Array, which: int, rewritten: bool, reply: bool
) -> None:
    src, dst, real, sport = _addresses(scenario, flow, which)
    if scenario.nat and rewritten:
        dst = real
    size = 20 if scenario.proto == 6 else 8
    payload = 60
    if scenario.family == 2:
        start, length = 20, 20 + size + payload
        head = struct.pack(">BBHHHBBH", 0x45, 0, length, 7, 0x4000, 64, scenario.proto, 0)
        places = ((12, 4, src), (16, 4, dst)) if not reply else ((12, 4, dst), (16, 4, src))
    else:
        start, length = 40, 40 + size + payload
        head = struct.pack(">IHBB", 0x60000000, size + payload, scenario.proto, 64)
        places = ((8, 16, src), (24, 16, dst)) if not reply else ((8, 16, dst), (24, 16, src))
    packet = entry["packet"]
    packet[:, : len(head)] = np.frombuffer(head, np.uint8)
    for at, width, address in places:
        packet[:, at : at + width] = address[:, :width]
    ports = (sport, np.full(len(flow), 443, np.uint16))
    for at, port in zip((start, start + 2), ports[::-1] if reply else ports, strict=True):
        packet[:, at] = port >> 8
        packet[:, at + 1] = port & 0xFF
    if scenario.proto == 6:
        packet[:, start + 12] = 0x50
        packet[:, start + 13] = 0x14 if reply else 0x18
    packet[:, start + size : min(length, 128)] = 0x61
    entry["len"] = length
    entry["caplen"] = min(length, 128)
    entry["protocol"] = 0x0800 if scenario.family == 2 else 0x86DD


def _fill_conntrack(entry: Array, scenario: Scenario, flow: Array, which: int) -> None:
    src, dst, real, sport = _addresses(scenario, flow, which)
    entry["flags"] |= record.F_CONNTRACK
    entry["ct"] = np.uint64(0xFFFF888100000000) + ((flow * 8 + which) * 320).astype(np.uint64)
    entry["ct_status"] = 0x20 if scenario.nat else 0
    entry["ct_info"] = 0 if scenario.proto == 6 else 2
    entry["ct_proto"] = scenario.proto
    entry["ct_orig_src"], entry["ct_orig_dst"] = src, dst
    entry["ct_orig_sport"], entry["ct_orig_dport"] = sport, 443
    entry["ct_reply_src"], entry["ct_reply_dst"] = (real if scenario.nat else dst), src
    entry["ct_reply_sport"], entry["ct_reply_dport"] = 443, sport
