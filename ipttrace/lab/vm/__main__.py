# SPDX-License-Identifier: GPL-2.0-only
"""Runs one command as root in the throwaway VM: ``python -m ipttrace.lab.vm -- COMMAND``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ipttrace.lab.kernels import DEBUG, DEFAULT, ensure, show_progress
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.vm.machine import BOOT_LIMIT, Machine, MachineError
from ipttrace.lab.vm.terminal import on_terminal


def main(arguments: Sequence[str]) -> int:
    """Runs a command in the VM; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ipttrace.lab.vm", description=__doc__)
    parser.add_argument("--kernel", default=DEFAULT)
    parser.add_argument("--share", type=Path)
    parser.add_argument("--append", action="append", default=[])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--accel", choices=("kvm", "tcg"))
    parser.add_argument("--one-thread", action="store_true", help="emulate all CPUs in one thread")
    parser.add_argument("command", nargs="+")
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        kernel = ensure(parsed.kernel, show_progress)
        machine = Machine(
            kernel,
            parsed.command,
            share=parsed.share,
            append=parsed.append,
            log=parsed.log,
            accel=parsed.accel,
            one_thread=parsed.one_thread,
            terminal=on_terminal(),
            # KASAN and lockdep: a minute of CPU time before the first command
            boot_limit=BOOT_LIMIT * (4 if parsed.kernel == DEBUG else 1),
        )
        return machine.run()
    except (KernelError, MachineError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError) as error:
        return 130 if isinstance(error, KeyboardInterrupt) else 141


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
