# SPDX-License-Identifier: GPL-2.0-only
"""Sends a packet through a copy; its rows and its fate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ipttrace.text import clean
from ipttrace.trace.row import Row
from ipttrace.whatif.answer import differs, fate, framing
from ipttrace.whatif.answer.differs import Differs
from ipttrace.whatif.answer.fate import Fate
from ipttrace.whatif.copy.conntrack import ECHO_ID
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.packet.build import build, first_of_connection
from ipttrace.whatif.packet.spec import ICMP, ICMPV6, PORTS, UDP, Connection, Ends, Packet

_SPORT: Final = 40000
_ECHO: Final = {(8, 0): (0, 0), (128, 0): (129, 0)}
# Of IPv6: listener reports and queries, solicitations of routers.
_NOISE: Final = ("130", "131", "132", "133", "143")
_ERRORS: Final = {ICMP: (3, 4, 5, 11, 12), ICMPV6: (1, 2, 3, 4)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a copy answered.

    `rows`: sequence numbers in the store of the copy's trace, of the packet and of those that
    were sent because of it; `own`: the packet's own rows; `notes`: what may be different.
    """

    packet: Packet
    sent: bytes
    rows: tuple[int, ...]
    own: tuple[Row, ...]
    fate: Fate
    differs: tuple[Differs, ...]
    notes: tuple[str, ...]


def ask(copy: Copy, packet: Packet, ready: Callable[[], None] | None = None) -> Answer:
    """Sends the packet and returns the answer.  Raises WhatIfError.

    `ready` is called when the packet's connection exists, before it is sent.
    """
    packet = _completed(copy, packet)
    data = build(packet)
    sends = framing.sends(copy, packet, data)
    if copy.asked:
        copy.ask("forget")
    _connect(copy, packet)
    if ready is not None:
        ready()
    rows, found = copy.send(sends)
    own, shown = _divided(packet, copy.trace.store.rows(rows))
    seen = [(str(device), bytes.fromhex(frame)) for device, frame in found["seen"]]
    counters = {str(name): int(count) for name, count in found["counters"].items()}
    what = fate.judge(data, own, seen, counters, found["refused"])
    if what.how == "kernel" and not what.reason:
        what = replace(what, reason=_by_routing(copy, packet))
    listed = differs.find(own, copy.trace.rulesets)
    return Answer(packet, data, tuple(shown), tuple(own), what, tuple(listed), packet.notes)


def _completed(copy: Copy, packet: Packet) -> Packet:
    """The packet with what the words left open."""
    if packet.raw:
        return packet
    if packet.proto in PORTS and packet.sport is None:
        packet = replace(packet, sport=_SPORT)
    if packet.is_reply and packet.icmp in _ECHO:
        packet = replace(packet, icmp=_ECHO[packet.icmp])
    if packet.src is None:
        packet = replace(packet, src=copy.ask("source", to=packet.dst)["address"])
    return packet


def _divided(packet: Packet, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows of the packet itself, and the numbers of all that have to do with it.

    Others are of what the copy's kernel reports about its multicast groups.
    """
    starts: dict[int, Row] = {}
    for row in rows:
        starts.setdefault(row.journey, row)
    ends = (packet.src, packet.dst)
    mine = next((key for key, row in starts.items() if (row.src, row.dst) == ends), None)
    if mine is None and packet.device:
        # NAT changes a reply before the first table that has rules.
        came = (key for key, row in starts.items() if row.in_ and not _is_noise(row))
        mine = next(came, None)
    noise = {key for key, row in starts.items() if key != mine and _is_noise(row)}
    own = [row for row in rows if row.journey == mine]
    return own, [row.index for row in rows if row.journey not in noise]


def _is_noise(row: Row) -> bool:
    return row.proto == "IGMP" or (row.icmp or "").partition("/")[0] in _NOISE


def _connect(copy: Copy, packet: Packet) -> None:
    if packet.connection is not None:
        copy.connect(packet.connection, "established", None)
        return
    if packet.state == "new" or packet.raw:
        return
    ends = _ends(packet)
    source, sport, target, dport = ends
    if packet.state == "related" and packet.icmp[0] in _ERRORS.get(packet.proto, ()):
        # An ICMP error is related to the connection that it is about.
        about = packet.original or (target, _SPORT, source, 33434)
        copy.connect(
            Connection(about, None, UDP, packet.ct_mark, packet.ct_zone), "established", None
        )
        return
    original: Ends = ends
    reply: Ends | None = None
    if packet.is_reply:
        backwards = (target, dport, source, sport)
        if packet.proto in (ICMP, ICMPV6):
            backwards = (target, sport, source, 8 if packet.proto == ICMP else 128)
        original = packet.original or backwards
        reply = ends
    wanted = Connection(original, reply, packet.proto, packet.ct_mark, packet.ct_zone)
    copy.connect(wanted, packet.state, _opener(copy, packet, original))


def _ends(packet: Packet) -> Ends:
    if packet.proto in (ICMP, ICMPV6):
        return (packet.src or "", ECHO_ID, packet.dst, packet.icmp[0])
    return packet.ends


def _opener(copy: Copy, packet: Packet, original: Ends) -> dict[str, Any]:
    source, sport, target, dport = original
    ports = {} if packet.proto in (ICMP, ICMPV6) else {"sport": sport, "dport": dport}
    first = replace(first_of_connection(packet), src=source, dst=target, **ports)  # type: ignore[arg-type]
    data = build(first)
    if packet.is_reply:
        return {"data": data.hex()}  # where it comes in, routing says
    return framing.sends(copy, first, data)[0]


def _by_routing(copy: Copy, packet: Packet) -> str:
    """Why routing does not take the packet, in ip(8)'s words; "" if it does."""
    words = ["ip", f"-{packet.family}", "route", "get", packet.dst]
    if packet.device and packet.src:
        words += ["from", packet.src, "iif", packet.device]
    done = copy.run(words)
    return f"routing: {clean(done.reason, 120)}" if done.status else ""
