# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: by name, process or path to their inode, and back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError

NAMED: Final = Path("/run/netns")
ALL: Final = "all"  # of --netns: every one there is


def inode(name: str) -> int:
    """The inode of the namespace `name`: of ip-netns, a process id or a path.

    Raises CaptureError when there is none.
    """
    if not name or "\0" in name:
        raise CaptureError("the name of the network namespace is empty")
    candidates = [NAMED / name] if "/" not in name else [Path(name)]
    if name.isdigit():
        candidates.append(Path("/proc") / name / "ns" / "net")
    for path in candidates:
        try:
            known = path.parent == NAMED or Path("/proc") in path.parents
            if known and (number := _number(path)):
                return number
        except OSError:
            continue
    raise CaptureError(
        f"there is no network namespace {name!r}: ip netns list shows those there are"
    )


def names() -> dict[int, str]:
    """Inode to name, of this process's and all named namespaces."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        found[os.stat("/proc/1/ns/net").st_ino] = "init"
    with contextlib.suppress(OSError):
        for path in NAMED.iterdir():
            with contextlib.suppress(OSError):
                if number := _number(path):
                    found[number] = path.name
    return found


def paths(only: int | None) -> dict[int, str]:
    """Inode to a path, of the namespaces of this process, by name, and of all processes."""
    found: dict[int, str] = {}
    try:
        pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)
    except OSError:
        pids = []
    # What comes later is the better way: it lasts longer.
    paths = [f"/proc/{pid}/ns/net" for pid in pids]
    with contextlib.suppress(OSError):
        paths += [str(path) for path in NAMED.iterdir()]
    for path in [*paths, "/proc/self/ns/net"]:
        with contextlib.suppress(OSError):
            if number := _number(path):
                found[number] = path
    if only is not None:
        return {inode: path for inode, path in found.items() if inode == only}
    return found


def title(path: str, inode: int) -> str:
    """What people call the namespace `inode`, to which `path` leads."""
    name = path.rsplit("/", 1)[-1] if "/netns/" in path else str(inode)
    return f"network namespace {name}"


def _number(path: str | Path) -> int:
    """The inode; 0 where it is no namespace: ip-netns makes files, and then mounts them.

    Raises OSError.
    """
    found = os.stat(path)
    return found.st_ino if found.st_dev == os.stat("/proc/self/ns/net").st_dev else 0
