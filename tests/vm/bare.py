# SPDX-License-Identifier: GPL-2.0-only
"""The module inserted and the programs pinned, nothing armed, nobody reading."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.control import Control
from ipttrace.capture.kernel.programs import PINS, PROGRAMS, Pins


class Bare:
    """While in a with statement; `control` is one socket, more may be opened."""

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
            kmod.remove(30.0)
        finally:
            self._pins.remove()

    def reopen(self) -> None:
        """Another socket instead of the one there was."""
        self.control.close()
        self.control = Control()

    def reinsert(self) -> None:
        """rmmod and insmod."""
        self.control.close()
        kmod.remove(30.0)
        kmod.insert(self.module)
        self.control = Control()


def references() -> int:
    """How often the module is held."""
    return int(Path("/sys/module/ipttrace/refcnt").read_text())
