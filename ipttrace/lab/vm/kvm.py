# SPDX-License-Identifier: GPL-2.0-only
"""Decides whether the VM uses KVM: only if a trial guest has booted under it.

``/dev/kvm`` can exist and still hang every guest, so a trial boot with a time
limit decides.  The result is cached until the host reboots.  Without KVM, QEMU
emulates (TCG).

Must not start a VM itself: the caller passes the trial in.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ipttrace.files import write
from ipttrace.lab.kernels import Kernel, cache_dir

DEVICE: Final = Path("/dev/kvm")
TRIAL_LIMIT: Final = 8.0
"""Seconds within which a guest under KVM must run its command; a working one needs two."""


def accelerator(
    kernel: Kernel, progress: Callable[[str], object], boots: Callable[[Kernel], bool]
) -> str:
    """Returns ``kvm`` if ``boots(kernel)`` has succeeded, else ``tcg``.

    $IPTTRACE_ACCEL overrides both the trial and its cached result.
    """
    override = os.environ.get("IPTTRACE_ACCEL", "")
    if override in ("kvm", "tcg"):
        return override
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    works = cached_result()
    if works is None:
        progress("trying KVM (once per boot of this host)")
        works = boots(kernel)
        _cache_result(works)
    return "kvm" if works else "tcg"


def needs_trial() -> bool:
    """Returns whether there is a usable KVM that has not been tried since the host booted."""
    usable = os.access(DEVICE, os.R_OK | os.W_OK)
    return usable and cached_result() is None and "IPTTRACE_ACCEL" not in os.environ


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def cached_result() -> bool | None:
    """Returns the result of the trial since the host booted; None without one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads((cache_dir() / "kvm.json").read_text())
        if cached["boot_id"] == _boot_id() and isinstance(cached["works"], bool):
            return bool(cached["works"])
    return None


def _cache_result(works: bool) -> None:
    with contextlib.suppress(OSError):
        file = cache_dir() / "kvm.json"
        fresh = file.with_suffix(f".{os.getpid()}")
        write(fresh, json.dumps({"boot_id": _boot_id(), "works": works}).encode() + b"\n")
        fresh.rename(file)
