# SPDX-License-Identifier: GPL-2.0-only
"""PROCESSES frames, checked, and the values of socket records.

A frame may come from a forged file, so every value is checked and every text cleaned and cut.
Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.sockets.stage import Denial, End, Process

_LONGEST: Final = 256  # characters
_MOST: Final = 1 << 14  # processes in a frame
_DIGITS: Final = 20
_LIMIT: Final = 1 << 32


def processes(frame: Mapping[str, Any]) -> Iterator[tuple[int, Process]]:
    """The processes of a PROCESSES frame, by number.  Raises StreamError."""
    listed = frame.get("processes", {})
    if not isinstance(listed, dict) or len(listed) > _MOST:
        raise StreamError("malformed processes in the stream")
    for number, about in listed.items():
        if not (number.isascii() and number.isdigit() and len(number) <= _DIGITS):
            raise StreamError("malformed processes in the stream")
        if not isinstance(about, dict):
            raise StreamError("malformed processes in the stream")
        yield int(number), _process(about)


def _process(about: Mapping[str, Any]) -> Process:
    def text(name: str) -> str:
        value = about.get(name, "")
        if not isinstance(value, str):
            raise StreamError(f"malformed processes in the stream: {name}")
        return clean(value, _LONGEST)

    pids = about.get("pids", [])
    if not isinstance(pids, list) or len(pids) > record.PID_LEVELS:
        raise StreamError("malformed processes in the stream: pids")
    uid = about.get("uid")
    return Process(
        pid=_natural(about.get("pid", 0)),
        uid=None if uid is None else _natural(uid),
        pids=tuple(map(_natural, pids)),
        others=_natural(about.get("others", 0)),
        comm=text("comm"),
        exe=text("exe"),
        runtime=text("runtime"),
        container=text("container"),
        pod=text("pod"),
        unit=text("unit"),
        denial=_denial(about, text) if "rule" in about else None,
    )


def _denial(about: Mapping[str, Any], text: Callable[[str], str]) -> Denial:
    return Denial(text("call"), _natural(about["rule"]), text("rule_text"), bool(about.get("dry")))


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LIMIT:
        raise StreamError("malformed processes in the stream: a number")
    return value


def end(family: int, address: bytes, port: int) -> End:
    """An address and port of a record."""
    if family == NFPROTO_IPV6:
        return str(IPv6Address(address)), port
    return str(IPv4Address(address[:4])), port
