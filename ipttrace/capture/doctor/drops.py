# SPDX-License-Identifier: GPL-2.0-only
"""What drops and stations need from a machine.

Must not read anything except the `Host`.
"""

from __future__ import annotations

from typing import Final

from ipttrace.capture.doctor.bpf import LIBRARY
from ipttrace.capture.doctor.check import BOOT, Check, install
from ipttrace.capture.doctor.machine import Host

_RING: Final = (5, 8)  # since then BPF has a ring buffer
_REASONS: Final = (5, 17)  # since then the kernel has reasons of drops


def drops(host: Host) -> Check:
    """Whether drops can be recorded."""
    name = "drops"
    if not host.root_user:
        return Check(name, "warn", "no, because they need root", "run it with sudo")
    if not host.exists("sys/kernel/btf/vmlinux"):
        return Check(name, "warn", f"no, because kernel {host.release} has no BTF", BOOT)
    if (host.version or (0, 0)) < _RING:
        return Check(name, "warn", f"no, because kernel {host.release} has no BPF ring", BOOT)
    if not host.library(LIBRARY):
        text = f"no, because {LIBRARY} is missing"
        return Check(name, "warn", text, install(host, "libbpf1"))
    accepted, why = host.try_outside(stations=False)
    if not accepted:
        return Check(name, "warn", f"no, because {why}")
    reasons = "" if (host.version or (0, 0)) >= _REASONS else ", but this kernel has no reasons"
    return Check(name, "ok", f"packets dropped outside the tables are recorded{reasons}")


def stations(host: Host) -> Check:
    """Whether stations can be recorded."""
    name = "stations"
    if drops(host).status != "ok":
        return Check(name, "warn", "no, because drops cannot be recorded")
    accepted, why = host.try_outside(stations=True)
    if not accepted:
        return Check(name, "warn", f"no, because {why}")
    lacking = f", except at {why}" if why else ""
    return Check(name, "ok", f"recorded with --stations{lacking}")
