# SPDX-License-Identifier: GPL-2.0-only
"""What the set-up does for the lab: kernels, the module for each, the proof of KVM.

``python -m ipttrace.lab.setup`` does what is missing; with ``--missing``
it only names it, a line each, and says nothing when all is there.

Must not install anything on the host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import SERIES, Kernel, KernelError, ensure, find, show_progress
from ipttrace.lab.vm import kvm as vm_kvm


def missing(wanted: Sequence[str]) -> list[str]:
    """What the cache lacks of the kernels of ``wanted`` (series or releases)."""
    lacks = []
    for series in wanted:
        kernel = find(series)
        if kernel is None:
            lacks.append(f"Linux {series} for the throwaway VM")
        elif not kmod.built_path(kernel.release).exists():
            lacks.append(f"the kernel module for Linux {kernel.release}")
    if _kvm_is_open():
        lacks.append("a trial of KVM")
    return lacks


def complete(wanted: Sequence[str]) -> None:
    """Fetch and build what is missing.  Raises KernelError or CaptureError, one line."""
    kernels: list[Kernel] = []
    for series in wanted:
        kernel = ensure(series, show_progress)
        kernels.append(kernel)
        if not kmod.built_path(kernel.release).exists():
            show_progress(f"building the kernel module for Linux {kernel.release}", None)
            kmod.build(kernel.headers, kernel.release)
            show_progress(f"the kernel module for Linux {kernel.release} is built", 1.0)
    if kernels and _kvm_is_open():
        how = vm_kvm.accelerator(kernels[0], lambda text: show_progress(text, None))
        verdict = "KVM works" if how == "kvm" else "KVM does not run a guest here: emulating (TCG)"
        show_progress(verdict, 1.0)


def _kvm_is_open() -> bool:
    """Whether there is a KVM that nobody tried since this machine booted."""
    usable = os.access(vm_kvm.DEVICE, os.R_OK | os.W_OK)
    return usable and vm_kvm.remembered() is None and "IPTTRACE_ACCEL" not in os.environ


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all is there now, 1 it cannot be had."""
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
