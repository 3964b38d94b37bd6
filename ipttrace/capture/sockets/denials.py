# SPDX-License-Identifier: GPL-2.0-only
"""The guard's rule for each call that was denied, joined to the stage that shows the call.

A stage and the guard's line about it come by two ways, so each waits for the other: the stage until
all guards have said what they had denied by then, the line until the ring was read once more.
Calls without a stage (datagrams, and what only would be denied) get one.  Must not do I/O.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import numpy as np

from ipttrace.capture.sockets.guards import CHECK_COMM, CHECK_PORT
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.stream.messages import Process
from ipttrace.stream.record import SOCKET_DTYPE, Records
from ipttrace.text import clean

_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
_CALLS: Final = ("connect", "accept", "receive")
_HELD: Final = 5_000_000_000  # ns that a stage waits at the most: a guard may be stopped
_APART: Final = 50_000_000  # ns between both, at the most
_MOST: Final = 4096  # that wait
_LONGEST: Final = 256  # characters of a rule
_SHORT: Final = 1 << 32
_LONG: Final = 1 << 63


class Denials:
    """What waits."""

    def __init__(self, only_netns: int = 0) -> None:
        """`only_netns`: an inode, 0: all."""
        self._netns = only_netns
        self._stages: list[np.void] = []
        self._lines: list[tuple[np.void, Process]] = []
        self._new = 0  # lines at the end of them that have come since the ring was read
        self.added = 0  # stages that the kernel's end has not shown
        self.lost = 0  # calls for which a guard had no room
        self.checks = 0  # stages that were left out: see _is_a_guards_own

    def merge(
        self,
        stages: Records,
        lines: Sequence[Mapping[str, Any]],
        now: int,
        *,
        upto: int | None,
        last: bool,
    ) -> tuple[Records, dict[int, Process]]:
        """The stages that can be delivered, and about those of a guard its rule, by their index.

        `lines`: of guards, read after the stages; `now`: CLOCK_MONOTONIC, ns; `upto`: what was
        denied before is in the lines, None: there is no guard; `last`: nothing waits any more.
        """
        known = len(self._lines)
        for line in lines:
            self._add(line)
        self._new = 0 if last else len(self._lines) - known
        denied = stages["stage"] == record.DENIED
        if denied.any():
            self._stages += [one for one in stages[denied] if not self._is_a_guards_own(one)]
            stages = stages[~denied]
        if not self._stages and not self._lines:
            return stages, {}
        found: list[tuple[np.void, Process | None]] = []
        self._pair(found)
        before = _LONG if last or upto is None else max(upto, now - _HELD)
        self._release(found, before)
        # numpy.concatenate() would give its numbers another byte order.
        merged = np.zeros(len(stages) + len(found), SOCKET_DTYPE)
        merged[: len(stages)] = stages
        rules = {}
        for at, (stage, about) in enumerate(found, len(stages)):
            merged[at] = stage
            if about is not None:
                rules[at] = about
        return merged, rules

    def _is_a_guards_own(self, stage: np.void) -> bool:
        """Whether it is the call by which a guard finds out whether it is asked."""
        own = stage["remote_port"] == CHECK_PORT and CHECK_COMM.fullmatch(bytes(stage["comm"]))
        self.checks += bool(own)
        return bool(own)

    def _pair(self, found: list[tuple[np.void, Process | None]]) -> None:
        """Moves stages and lines that are about the same call to `found`."""
        by_thread: dict[tuple[int, bool], list[np.void]] = {}
        for stage in self._stages:
            by_thread.setdefault(_thread(stage), []).append(stage)
        left: list[tuple[np.void, Process]] = []
        older = len(self._lines) - self._new
        for number, (made, about) in enumerate(self._lines):
            of_thread = by_thread.get(_thread(made), []) if _waits(made, about) else []
            near = (
                at
                for at, stage in enumerate(of_thread)
                if abs(int(stage["time"]) - int(made["time"])) <= _APART
            )
            at = next(near, None)
            if at is None:
                left.append((made, about))
            else:
                found.append((of_thread.pop(at), about))
                self._new -= number >= older
        self._lines = left
        self._stages = [stage for each in by_thread.values() for stage in each]

    def _release(self, found: list[tuple[np.void, Process | None]], before: int) -> None:
        """Moves earlier stages, lines that are not new, and what there is no room for."""
        waiting = [one for one in self._stages if int(one["time"]) >= before]
        kept = waiting[-_MOST:]
        first = int(kept[0]["time"]) if len(kept) < len(waiting) else before
        found += [(one, None) for one in self._stages if int(one["time"]) < max(before, first)]
        self._stages = [one for one in self._stages if int(one["time"]) >= max(before, first)]
        ready = max(len(self._lines) - min(self._new, _MOST), 0)
        found += self._lines[:ready]
        self.added += ready
        del self._lines[:ready]

    def _add(self, line: Mapping[str, Any]) -> None:
        try:
            if "lost" in line:
                self.lost += _natural(line["lost"])
                return
            made, about = _stage(line)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return
        if not self._netns or made["netns"] == self._netns:
            self._lines.append((made, about))


def _waits(made: np.void, about: Process) -> bool:
    """Whether there may be a stage of it."""
    return about["call"] != "receive" and bool(made["tid"]) and not about["dry"]


def _thread(stage: np.void) -> tuple[int, bool]:
    """By whom, and whether it calls or accepts."""
    return int(stage["tid"]), bool(stage["remote_port"])


def _natural(value: object, limit: int = _SHORT) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError("no number")
    return value


def _stage(line: Mapping[str, Any]) -> tuple[np.void, Process]:
    """The stage and the rule of a guard's line.  Raises ValueError and others."""
    made: np.void = np.zeros(1, SOCKET_DTYPE)[0]
    made["time"] = _natural(line["mono"], _LONG)
    made["cgroup"] = _natural(line["cgroup"], _LONG)
    made["stage"] = record.DENIED
    made["flags"] = record.SK_F_DENIED
    made["error"] = errno.EACCES if line["denied"] else 0
    made["protocol"] = _PROTOCOLS.get(line["protocol"]) or _natural(int(line["protocol"]), 256)
    made["netns"] = _natural(line["netns"])
    made["uid"] = _natural(line["uid"])
    if line["pid"] is not None:
        made["flags"] |= record.SK_F_PROCESS
        made["pid"], made["tid"] = _natural(line["pid"]), _natural(line["tid"])
        made["comm"] = line["comm"].encode("utf-8", "replace")
    ends = {name: line[f"{name}_ip"] for name in ("local", "remote")}
    known = [ip_address(one) for one in ends.values() if one is not None]
    six = any(isinstance(one, IPv6Address) for one in known)
    made["family"] = NFPROTO_IPV6 if six else NFPROTO_IPV4
    for name, address in ends.items():
        if address is not None:
            packed = ip_address(address).packed
            made[name][: len(packed)] = list(packed)
        made[f"{name}_port"] = _natural(line[f"{name}_port"] or 0, 1 << 16)
    if line["call"] not in _CALLS:
        raise ValueError("no call")
    about: Process = {
        "call": line["call"],
        "rule": _natural(line["rule"]),
        "rule_text": clean(line["rule_text"] or "", _LONGEST),
        "dry": not line["denied"],
    }
    return made, about
