# SPDX-License-Identifier: GPL-2.0-only
"""One-shot timers on a busy machine."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from textual import _time
from textual.app import App

from ipttrace.tui.timers import once


async def test_a_short_timer_fires_although_the_process_is_not_scheduled_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fired = asyncio.Event()
    app = App[None]()
    async with app.run_test():
        # GIVEN a machine so busy that 10 ms pass between two looks at the clock
        with monkeypatch.context() as patch:
            ticks = count()
            patch.setattr(_time, "get_time", lambda: next(ticks) * 0.01)
            # WHEN a timer of 1 ms is started THEN it fires
            once(app, 0.001, fired.set)
            await asyncio.wait_for(fired.wait(), 10)
