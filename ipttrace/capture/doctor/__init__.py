# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace doctor`: what this machine can trace with, what it lacks, and what provides it.

- machine: a machine's properties, read from files
- check: one finding, and how its remedy is written
- kernel: what the kernel engine needs
- netlink: what the netlink engine needs
- bpf: what the BPF engine needs
- drops: what drops and stations need
- optional: what neither needs, but a user may miss

A check looks at a `Host` and returns one line: nothing is mounted, installed or sent, no
module is loaded, and the BPF programs are loaded only to see whether the kernel accepts them.
The agent asks `why_not` before it starts, so that a person reads the reason and not an errno.
Must not import bcc.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from ipttrace.capture.doctor import bpf, drops, kernel, netlink, optional
from ipttrace.capture.doctor.bpf import why_not as why_not_bpf
from ipttrace.capture.doctor.check import Check
from ipttrace.capture.doctor.kernel import why_not
from ipttrace.capture.doctor.machine import Host
from ipttrace.text import escape

__all__ = ["Check", "Host", "checks", "render", "run", "why_not", "why_not_bpf"]

_COLOURS: Final = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def checks(host: Host) -> list[Check]:
    """Returns all findings; the last three say whether each engine can run."""
    found = [check(host) for check in (*kernel.CHECKS, *optional.CHECKS)]
    found += [drops.drops(host), drops.stations(host)]
    return [*found, bpf.engine(host), kernel.engine(host), netlink.engine(host)]


def render(found: list[Check], colour: bool = False) -> str:
    """Returns the findings as aligned lines, each followed by its remedy, if it has one."""
    width = max((len(check.name) for check in found), default=0)
    lines = []
    for check in found:
        status = f"{check.status:<4}"
        if colour:
            status = f"{_COLOURS[check.status]}{status}\x1b[0m"
        # Releases and links come from files, and may contain terminal escapes.
        lines.append(f"{status}  {check.name:<{width}}  {escape(check.text)}")
        if check.remedy and check.status != "ok":
            lines.append(f"{'':4}  {'':<{width}}  → {escape(check.remedy)}")
    return "".join(f"{line}\n" for line in lines)


def run(host: Host | None = None) -> int:
    """Prints the findings; returns 0 if an engine can run here, otherwise 1."""
    host = host or Host.here()
    found = checks(host)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    sys.stdout.write(render(found, colour))
    return 0 if any(c.name.startswith("engine") and c.status == "ok" for c in found) else 1
