# SPDX-License-Identifier: GPL-2.0-only
"""The module inserted and the programs pinned, but nothing armed and nobody reading."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Control
from ipttrace.capture.kernel.programs import PINS, PROGRAMS, Pins
from tests.vm.patience import PATIENCE


class Bare:
    """During a with statement; `control` is one socket, a test may open others."""

    pins: Final = [PINS / name for name in PROGRAMS]

    def __enter__(self) -> Bare:
        self._pins = Pins()
        self.module = kmod.find_or_build()
        kmod.insert(self.module)
        self._pins.load()
        self.control = Control()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        try:
            kmod.remove(PATIENCE)
        finally:
            self._pins.remove()

    def reopen(self) -> None:
        """Replaces the socket."""
        self.control.close()
        self.control = Control()

    def reinsert(self, *parameters: str) -> None:
        """rmmod and insmod, with these parameters."""
        self.control.close()
        kmod.remove(PATIENCE)
        subprocess.run(["insmod", str(self.module), *parameters], check=True)
        self.control = Control()


def references() -> int:
    """The reference count of the module."""
    return int(Path("/sys/module/ipttrace/refcnt").read_text())
