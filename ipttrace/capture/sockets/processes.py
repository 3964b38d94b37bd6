# SPDX-License-Identifier: GPL-2.0-only
"""The processes of stages of sockets, described from /proc: executable, user, pids, container.

A stage that a process caused has its pid in the record; others have the inode of the listener,
whose owner is looked for.  Must not attach anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ipttrace.capture.containers import Cgroups, Container, identify
from ipttrace.capture.drops.owners import Owners
from ipttrace.stream import record
from ipttrace.stream.messages import Process
from ipttrace.stream.record import Records
from ipttrace.text import clean

Words = npt.NDArray[np.uint64]

_MOST: Final = 1 << 14  # that have a number at the same time
_MOST_TEXT: Final = 256  # characters of an executable's path, of a unit's name
_MOST_FILE: Final = 1 << 16  # bytes that are read of a file in /proc


class ProcessBook:
    """Gives numbers from 1 on, and keeps what is new."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Cgroups | None = None) -> None:
        self._proc = proc
        self._cgroups = cgroups or Cgroups()
        self._owners = Owners(proc)
        self._of_owner: dict[int, int] = {}  # by the number that Owners gave
        self._known: dict[tuple[object, ...], int] = {}
        self._next = 1
        self._new: dict[str, Process] = {}

    def numbers(self, stages: Records, rules: Mapping[int, Process] | None = None) -> Words:
        """The numbers of the processes, 0: unknown; shape (n,).  Reads /proc.

        `rules`: what is to be added to those of stages that a guard denies, by index.
        """
        found = np.zeros(len(stages), np.uint64)
        called = stages["flags"] & record.SK_F_PROCESS != 0
        seen: dict[tuple[int, bytes, int], int] = {}
        for at in np.flatnonzero(called).tolist():
            key = (int(stages["pid"][at]), bytes(stages["comm"][at]), int(stages["cgroup"][at]))
            if key not in seen:
                seen[key] = self._number(self._caller(stages[at]))
            found[at] = seen[key]
        others = np.flatnonzero(~called & (stages["owner"] != 0))
        if len(others):
            owners, new = self._owners.numbers(stages["owner"][others])
            for number, owner in new.items():
                about = self._read(owner["pid"])
                about["comm"] = owner["comm"]
                if owner["others"]:
                    about["others"] = owner["others"]
                self._of_owner[int(number)] = self._number(about)
            found[others] = [self._of_owner.get(one, 0) for one in owners.tolist()]
        for at, rule in (rules or {}).items():
            about = self._caller(stages[at]) if called[at] else Process()
            found[at] = self._number(about | rule)
        return found

    def take(self) -> dict[str, Process]:
        """The descriptions that are new since the last call, by number."""
        new, self._new = self._new, {}
        return new

    def _number(self, about: Process) -> int:
        key = tuple((name, str(value)) for name, value in sorted(about.items()))
        number = self._known.get(key)
        if number is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            number = self._known[key] = self._next
            self._next += 1
            self._new[str(number)] = about
        return number

    def _caller(self, stage: np.void) -> Process:
        """What the record says, and /proc, if the process is still there."""
        about = self._read(int(stage["pid"]))
        about["comm"] = clean(bytes(stage["comm"]).decode("utf-8", "replace"), 16)
        about["uid"] = int(stage["uid"])
        levels = min(int(stage["levels"]), record.PID_LEVELS)
        if levels:
            about["pids"] = stage["pids"][:levels].tolist()
        named = self._cgroups.of(int(stage["cgroup"]))
        if named != Container():
            _add_container(about, named)
        return about

    def _read(self, pid: int) -> Process:
        folder = self._proc / str(pid)
        about: Process = {"pid": pid}
        with contextlib.suppress(OSError):
            about["exe"] = clean(os.readlink(folder / "exe"), _MOST_TEXT)
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in _lines(folder / "status"):
                words = line.split()
                if line.startswith("Uid:"):
                    about["uid"] = int(words[2])
                elif line.startswith("NSpid:"):
                    about["pids"] = [int(one) for one in words[1:]][: record.PID_LEVELS]
        with contextlib.suppress(OSError):
            for line in _lines(folder / "cgroup"):
                named = identify(line.split(":", 2)[-1])
                if named != Container():
                    _add_container(about, named)
                    break
        return about


def _add_container(about: Process, named: Container) -> None:
    for name, text in (("runtime", named.runtime), ("pod", named.pod), ("unit", named.unit)):
        if text:
            about[name] = clean(text, _MOST_TEXT)  # type: ignore[literal-required]
    if named.id:
        about["container"] = clean(named.id, _MOST_TEXT)


def _lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.read(_MOST_FILE).decode("utf-8", "replace").splitlines()
