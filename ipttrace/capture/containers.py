# SPDX-License-Identifier: GPL-2.0-only
"""Containers and units by the names of their cgroups, as their runtimes give them.

A cgroup's number is the inode of its folder.  Must not write anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_MOST: Final = 1 << 16  # folders that are looked at
_ID: Final = "[0-9a-f]{64}"
# What a folder of a container's cgroup is called, and by whom.
_NAMES: Final = (
    ("docker", re.compile(rf"docker-({_ID})\.scope")),
    ("podman", re.compile(rf"libpod-({_ID})(?:\.scope)?")),
    ("containerd", re.compile(rf"cri-containerd-({_ID})\.scope")),
    ("cri-o", re.compile(rf"crio-({_ID})(?:\.scope)?")),
    ("nspawn", re.compile(r"machine-(.{1,128})\.scope")),
    ("lxc", re.compile(r"lxc\.payload\.(.{1,128})")),
)
_BARE: Final = re.compile(_ID)
_POD: Final = re.compile(
    r"(?:kubepods-.*)?pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?"
)


@dataclass(frozen=True, slots=True)
class Container:
    """What a cgroup's path says of its processes; "" where it says nothing."""

    runtime: str = ""
    id: str = ""
    pod: str = ""  # the uid of the Kubernetes pod
    unit: str = ""  # of systemd

    def is_named(self, name: str) -> bool:
        """Whether a rule that says `container name` is of it."""
        return bool(name) and (
            self.id.startswith(name) or self.pod.startswith(name) or self.unit == name
        )


def identify(path: str) -> Container:
    """What the path of a cgroup says, from the root of the hierarchy on."""
    runtime = found = pod = unit = ""
    parts = [part for part in path.split("/") if part]
    for before, part in zip(["", *parts], parts, strict=False):
        if match := _POD.fullmatch(part):
            pod = match[1].replace("_", "-")
        for name, pattern in _NAMES:
            if match := pattern.fullmatch(part):
                runtime, found = name, match[1]
        if _BARE.fullmatch(part):
            runtime = "docker" if before == "docker" else "containerd" if pod else before
            found = part
        if part.endswith(".service"):
            unit = part
    return Container(runtime, found, pod, "" if found else unit)


class Cgroups:
    """The cgroups of the host, read when they are needed."""

    def __init__(self, root: Path = CGROUPS) -> None:
        # Beside version 1 the one hierarchy of version 2 is a folder of its own.
        unified = root / "unified"
        self._root = unified if unified.is_dir() else root
        self._paths: dict[int, str] = {}

    def named(self, names: Iterable[str]) -> dict[str, list[int]]:
        """The numbers of the topmost cgroups of these containers, by name."""
        wanted = set(names)
        found: dict[str, list[int]] = {name: [] for name in wanted}
        if not wanted:
            return found
        self._read()
        for number, path in self._paths.items():
            container = identify(path)
            parent = identify(os.path.dirname(path))
            for name in wanted:
                if container.is_named(name) and not parent.is_named(name):
                    found[name].append(number)
        return {name: sorted(numbers) for name, numbers in found.items()}

    def of(self, number: int) -> Container:
        """What is known of the cgroup with this number."""
        if number and number not in self._paths:
            self._read()
        return identify(self._paths.get(number, ""))

    def _read(self) -> None:
        self._paths = {}
        folders = [""]
        while folders and len(self._paths) < _MOST:
            folder = folders.pop()
            try:
                with os.scandir(self._root / folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            path = f"{folder}/{entry.name}".lstrip("/")
                            self._paths[entry.inode()] = path
                            folders.append(path)
            except OSError:
                continue
