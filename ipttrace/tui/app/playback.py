# SPDX-License-Identifier: GPL-2.0-only
"""Commands that move in time: go to a moment, play a recording, scrub.

Must not feed traces or draw.
"""

from __future__ import annotations

from typing import Final

from textual.timer import Timer

from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.app.moment import FORMS, SECOND, moment
from ipttrace.tui.rows.playback import Clock
from ipttrace.tui.widgets.prompt import Ask

SCRUB: Final = 5 * SECOND
TICK: Final = 0.05  # s between two pictures of a recording that is played


class Playback:
    """The app's commands in time."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._timer: Timer | None = None

    @property
    def _clock(self) -> Clock | None:
        return self._app.shown.clock

    def _here(self) -> int:
        """The time of the row under the cursor, else of the newest row."""
        row = self._app.view.row
        return self._app.store.newest if row is None else row.time

    def ask_time(self) -> None:
        """Opens the prompt for a moment to go to."""

        def check(text: str) -> tuple[str, int] | None:
            valid = moment(text, self._here()) is not None
            return None if valid else (f"not a time: write {FORMS}", 0)

        self._app.prompt.ask(
            Ask(
                "go to",
                self._go_to,
                placeholder="12:30:05, 2026-11-21T12:30, -30s, +5m",
                check=check,
            )
        )

    def _go_to(self, text: str) -> None:
        time = moment(text, self._here())
        if time is None or not len(self._app.store):
            self._app.show_notice("there is no row to go to", error=True)
            return
        self._app.show_view("trace")
        self._move_to(time)

    def _move_to(self, time: int) -> None:
        app, clock = self._app, self._clock
        if clock is not None:
            oldest = app.store.time(app.store.first)
            clock.put(min(max(time, oldest), app.store.newest))
            app.view.pull()
            app.refresh_bars()
            if app.rows.follow:  # the list follows the clock
                return
        selection = app.shown.selection
        app.rows.move_to(min(selection.position(app.store.at(time)), selection.end - 1))

    def scrub(self, step: int) -> None:
        """Goes `step` times 5 s forward."""
        here = self._here() if self._clock is None else self._clock.time
        self._move_to(here + step * SCRUB)

    def toggle(self) -> None:
        """Plays the recording, or stops it."""
        app, clock = self._app, self._clock
        if app.feeds.live:
            app.show_notice("rows arrive live: only a recording can be played", error=True)
            return
        if not len(app.store):
            app.show_notice("there is no row to play", error=True)
            return
        if clock is None:
            self._play(self._here() if not app.rows.follow else app.store.time(app.store.first))
        elif clock.running:
            clock.run(False)
        else:
            if clock.time >= app.store.newest:
                clock.put(app.store.time(app.store.first))
            clock.run(True)
        app.refresh_bars()

    def _play(self, start: int) -> None:
        app = self._app
        clock = Clock()
        clock.put(start)
        clock.run(True)
        app.rows.follow = True
        app.rows.paused = False
        app.shown.play(clock)
        app.view.pull()
        self._timer = app.set_interval(TICK, self._tick)

    def change_speed(self, step: int) -> None:
        """Plays faster (1) or slower (-1); beyond the fastest speed all rows are shown."""
        if self._clock is None:
            self.toggle()
            return
        if self._clock.change_speed(step) is None:
            if self._timer is not None:
                self._timer.stop()
            self._app.shown.play(None)
            self._app.view.pull()
        self._app.refresh_bars()

    def _tick(self) -> None:
        app, clock = self._app, self._clock
        if clock is None or not clock.running:
            return
        if app.over and clock.time > app.store.newest:
            clock.put(app.store.newest)
            clock.run(False)
        app.view.pull()
