# SPDX-License-Identifier: GPL-2.0-only
"""Sets the lab up: its kernels, the kernel module for each, the trial of KVM.

``python -m ipttrace.lab.setup [KERNEL ...]`` provides what is missing, ``debug`` being the
debug kernel; with ``--missing`` it only lists it, one item a line, and prints nothing if
everything is there.

Must not install anything on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import (
    DEBUG,
    SERIES,
    Kernel,
    KernelError,
    debug,
    ensure,
    find,
    show_progress,
)
from ipttrace.lab.vm import kvm
from ipttrace.lab.vm.machine import boots_under_kvm


def missing(wanted: Sequence[str]) -> list[str]:
    """Returns a line for each item missing for the kernels ``wanted`` (series or releases)."""
    items = []
    for series in wanted:
        kernel = find(series)
        if series == DEBUG and (kernel is None or not debug.is_current(kernel)):
            items.append("the debug kernel for the throwaway VM")
        elif kernel is None:
            items.append(f"Linux {series} for the throwaway VM")
        elif not kmod.built_path(kernel.release).exists():
            items.append(f"the kernel module for Linux {kernel.release}")
    if kvm.needs_trial():
        items.append("a trial of KVM")
    return items


def complete(wanted: Sequence[str]) -> None:
    """Fetches and builds what is missing.  Raises KernelError or CaptureError."""
    kernels: list[Kernel] = []
    for series in wanted:
        kernel = debug.build(show_progress) if series == DEBUG else ensure(series, show_progress)
        kernels.append(kernel)
        if not kmod.built_path(kernel.release).exists():
            show_progress(f"building the kernel module for Linux {kernel.release}", None)
            kmod.build(kernel.headers, kernel.release)
            show_progress(f"the kernel module for Linux {kernel.release} is built", 1.0)
    if kernels and kvm.needs_trial():
        accel = kvm.accelerator(kernels[0], lambda text: show_progress(text, None), boots_under_kvm)
        verdict = "KVM works" if accel == "kvm" else "KVM runs no guest here: emulating (TCG)"
        show_progress(verdict, 1.0)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 complete, 1 something cannot be provided, 130 interrupted."""
    wanted = [argument for argument in arguments if argument != "--missing"] or list(SERIES)
    try:
        if "--missing" in arguments:
            print("".join(f"{line}\n" for line in missing(wanted)), end="")
        else:
            complete(wanted)
    except (KernelError, CaptureError) as error:
        print(f"set up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
