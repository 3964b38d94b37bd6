# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of packets in a copy, and what differs between two copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipttrace.trace.store import Store
from ipttrace.whatif.answer import words
from ipttrace.whatif.answer.ask import Answer, ask
from ipttrace.whatif.compare.distinct import Kind
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.recorded import of_row
from ipttrace.whatif.packet.spec import Packet


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet: `key` is what is compared, `text` is for people.

    `unsent`: the packet could not be sent, `text` says why.  `named`: rules on its way ask for
    what a copy does not have.
    """

    text: str
    key: tuple[Any, ...]
    unsent: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """Packets whose fate differs."""

    kind: Kind
    old: Outcome
    new: Outcome


@dataclass(frozen=True, slots=True)
class Compared:
    """The result: `packets` and `kinds` are what was compared."""

    differences: tuple[Difference, ...]
    kinds: int
    packets: int
    unsent: int  # packets
    named: int  # packets that met rules whose answer may differ
    reason: str = ""  # why the first of the unsent could not be sent


def outcomes(
    copy: Copy, store: Store, kinds: Sequence[Kind], progress: Callable[[int], None]
) -> list[Outcome]:
    """Returns what becomes of each packet.  Raises WhatIfError if the copy ends.

    `progress` is called with the number of packets that were sent.
    """
    found = []
    for number, kind in enumerate(kinds):
        progress(number)
        try:
            answer = ask(copy, _to_this_host(copy, of_row(store, kind.row.index)))
        except WhatIfError as error:
            if copy.ended:
                raise
            found.append(Outcome(str(error), ("unsent",), unsent=True))
        else:
            found.append(_outcome(answer))
    return found


def _to_this_host(copy: Copy, packet: Packet) -> Packet:
    """The packet for the device's own address, which may be another one than in the recording.

    What comes to a table was for this host, unless a bridge forwards it.
    """
    device = copy.snapshot.device(packet.device)
    if device is None or device.master or not packet.mac_dst or int(packet.mac_dst[:2], 16) & 1:
        return packet
    return replace(packet, mac_dst="")


def _outcome(answer: Answer) -> Outcome:
    fate = answer.fate
    # Not the port that NAT gives it, which may be another one each time.
    left = tuple((one.device, one.src, one.dst, one.dport, one.vlan) for one in fate.left)
    how = "rule" if fate.how == "queue" else fate.how
    reason = fate.reason if fate.how == "kernel" else ""
    key = (fate.verdict, how, reason, left)
    return Outcome(words.outcome(answer), key, named=bool(answer.differs))


def compared(kinds: Sequence[Kind], old: Sequence[Outcome], new: Sequence[Outcome]) -> Compared:
    """Returns which packets' fates differ."""
    every = list(zip(kinds, old, new, strict=True))
    sent = [(kind, one, two) for kind, one, two in every if not one.unsent and not two.unsent]
    unsent = [(kind, one, two) for kind, one, two in every if one.unsent or two.unsent]
    return Compared(
        tuple(Difference(kind, one, two) for kind, one, two in sent if one.key != two.key),
        len(sent),
        sum(kind.count for kind, *_ in sent),
        sum(kind.count for kind, *_ in unsent),
        sum(kind.count for kind, one, two in sent if one.named or two.named),
        next((one.text if one.unsent else two.text for _, one, two in unsent), ""),
    )
