# SPDX-License-Identifier: GPL-2.0-only
"""One-shot timers that always fire.  Must not import a widget."""

from __future__ import annotations

from collections.abc import Callable

from textual.message_pump import MessagePump
from textual.timer import Timer


def once(pump: MessagePump, delay: float, callback: Callable[[], object]) -> Timer:
    """Calls `callback` once, `delay` seconds from now: as `set_timer`, but always.

    Textual's timers skip ticks that are late, and one that does not repeat has only one:
    if the process is not scheduled for `delay` while the timer starts, it never fires.
    On a busy machine that happens to a timer of 1 ms.
    """
    timer = pump.set_timer(delay, callback)
    timer._skip = False  # read when the timer's task first runs, which is later
    return timer
