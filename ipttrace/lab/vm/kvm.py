# SPDX-License-Identifier: GPL-2.0-only
"""Whether KVM can be used: only where it has booted a guest.

``/dev/kvm`` can be there and still hang a guest for ever, so a boot under a
time limit proves it; the answer holds until the host boots again.  Where the
answer is no, QEMU emulates (TCG).

Must not start anything but that one guest.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels import Kernel, cache_dir

DEVICE: Final = Path("/dev/kvm")
PROOF_LIMIT: Final = 8.0
"""Seconds in which a guest under KVM must run its command; a working one takes two."""


def accelerator(kernel: Kernel, progress: Callable[[str], object]) -> str:
    """``kvm`` where it has proved itself, else ``tcg``; $IPTTRACE_ACCEL overrides."""
    asked = os.environ.get("IPTTRACE_ACCEL", "")
    if asked in ("kvm", "tcg"):
        return asked
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    answer = remembered()
    if answer is None:
        progress("trying KVM (once per boot of this machine)")
        answer = _proves_itself(kernel)
        _remember(answer)
    return "kvm" if answer else "tcg"


def _proves_itself(kernel: Kernel) -> bool:
    from ipttrace.lab.vm import Machine, MachineError

    try:
        machine = Machine(
            kernel,
            ["true"],
            accel="kvm",
            boot_limit=PROOF_LIMIT,
            cwd=Path("/"),
            progress=lambda text: None,
        )
        with machine:
            machine.start()
            return machine.wait(PROOF_LIMIT * 2) == 0
    except (MachineError, TimeoutError):
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def remembered() -> bool | None:
    """What was found since this machine booted; None where nothing was tried."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((cache_dir() / "kvm.json").read_text())
        if kept["boot_id"] == _boot_id() and isinstance(kept["works"], bool):
            return bool(kept["works"])
    return None


def _remember(works: bool) -> None:
    with contextlib.suppress(OSError):
        file = cache_dir() / "kvm.json"
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"boot_id": _boot_id(), "works": works}) + "\n")
        fresh.rename(file)
