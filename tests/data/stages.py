# SPDX-License-Identifier: GPL-2.0-only
"""Records of stages of sockets, and traces that are fed with them."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from tests.data.records import MONO, Array

SERVER, CLIENT = ("10.0.0.1", 80), ("10.0.0.2", 40000)
HANDSHAKE = (record.SYN_TAKEN, record.SYN_ACK_SENT, record.ESTABLISHED, record.ACCEPTED)


def stage(
    what: int,
    at: int = 0,
    *,
    local: tuple[str, int] = SERVER,
    remote: tuple[str, int] | None = CLIENT,
    **fields: Any,
) -> Array:
    """A socket record, shape (1,), `at` ns into the trace."""
    made = np.zeros(1, record.SOCKET_DTYPE)
    given: dict[str, Any] = {"protocol": 6, "netns": 7, "family": 10 if ":" in local[0] else 2}
    for name, end in (("local", local), ("remote", remote)):
        if end is not None:
            put(made, name, end[0])
            made[f"{name}_port"] = end[1]
    for name, value in ({"stage": what, "time": MONO + at} | given | fields).items():
        made[name] = value
    return made


def put(made: Array, name: str, address: str) -> None:
    """Sets an address."""
    packed = ip_address(address).packed
    made[name][0, : len(packed)] = np.frombuffer(packed, np.uint8)


def frame(*records: Array) -> Frame:
    """A SOCKET frame."""
    return Frame(Kind.SOCKET, np.concatenate(records).astype(record.SOCKET_DTYPE).tobytes())


def processes(**by_number: Any) -> Frame:
    """A PROCESSES frame; numbers are written `_1`."""
    named = {number.removeprefix("_"): about for number, about in by_number.items()}
    return Frame(Kind.PROCESSES, json.dumps({"processes": named}).encode())
