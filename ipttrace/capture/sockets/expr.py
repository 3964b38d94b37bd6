# SPDX-License-Identifier: GPL-2.0-only
"""Which stages of sockets EXPR takes: those whose packets, in one direction or the other, it takes.

A stage has no packet: EXPR is asked about the beginning of one between the same ends, with the
conntrack's ends as well where they are known.  What it asks of other bytes is taken to be met.
Must not do I/O.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.filter import headers
from ipttrace.stream import record
from ipttrace.stream.record import Records

Mask = npt.NDArray[np.bool_]
_Octets = npt.NDArray[np.uint8]

_FOUR: Final = 20  # bytes of a header
_SIX: Final = 40
_PORTS: Final = 4
_LONG: Final = 1500  # of the packet that is asked about: any length


def taken(program: bytes, stages: Records) -> Mask:
    """Which of them `program`, of pcap.compile(), takes: shape (n,).  Raises FilterError."""
    found = np.zeros(len(stages), bool)
    if not program:
        return ~found
    local = (stages["local"], stages["local_port"])
    remote = (stages["remote"], stages["remote_port"])
    original = stages["flags"] & record.SK_F_ORIGINAL != 0
    translated = stages["flags"] & record.SK_F_TRANSLATED != 0
    found |= _either(program, stages, local, remote)
    if original.any():
        before = (stages["orig_dst"], stages["orig_dport"])
        found |= original & _either(program, stages, before, remote)
    if translated.any():
        behind = (stages["reply_src"], stages["reply_sport"])
        found |= translated & _either(program, stages, local, behind)
    return found


_End = tuple[_Octets, npt.NDArray[np.uint16]]


def _either(program: bytes, stages: Records, one: _End, other: _End) -> Mask:
    return _matches(program, stages, one, other) | _matches(program, stages, other, one)


def _matches(program: bytes, stages: Records, source: _End, destination: _End) -> Mask:
    count = len(stages)
    packets = np.zeros((count, _SIX + _PORTS), np.uint8)
    caplens = np.full(count, _SIX + _PORTS, np.int64)
    six = stages["family"] == 10
    four = ~six
    packets[six, 0] = 0x60
    packets[six, 6] = stages["protocol"][six]
    packets[six, 8:24] = source[0][six]
    packets[six, 24:40] = destination[0][six]
    packets[four, 0] = 0x45
    packets[four, 9] = stages["protocol"][four]
    packets[four, 12:16] = source[0][four, :4]
    packets[four, 16:20] = destination[0][four, :4]
    caplens[four] = _FOUR + _PORTS
    for which, at in ((six, _SIX), (four, _FOUR)):
        for (_, ports), begin in ((source, at), (destination, at + 2)):
            packets[which, begin] = ports[which] >> 8
            packets[which, begin + 1] = ports[which] & 0xFF
    yes, unknown = headers.matches(program, packets, caplens, np.full(count, _LONG, np.int64))
    return yes | unknown
