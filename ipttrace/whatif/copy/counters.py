# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel counts of packets in the copy: /proc/net/snmp, netstat and snmp6."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_FILES: Final = ("snmp", "netstat")


def read() -> dict[str, int]:
    """Returns counters by name, as nstat(8) names them."""
    found: dict[str, int] = {}
    for name in _FILES:
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/net", name).read_text("ascii").splitlines()
            for heads, values in zip(lines[::2], lines[1::2], strict=False):
                group, *names = heads.split()
                numbers = map(int, values.split()[1:])
                found.update({f"{group[:-1]}{key}": n for key, n in zip(names, numbers)})  # noqa: B905
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/net/snmp6").read_text("ascii").splitlines():
            key, _, value = line.partition(" ")
            if key.startswith("Ip6"):
                found[key] = int(value.split()[-1])
    return found


def changes(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Returns how much each counter has grown; those that have not are omitted."""
    return {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
