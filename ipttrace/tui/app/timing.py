# SPDX-License-Identifier: GPL-2.0-only
"""What keys do along time: go to a moment, play a recording, scrub.

A part of `TraceApp`, in a file of its own.  Must not feed or draw.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import ClassVar, Final

from textual.binding import Binding, BindingType

from ipttrace.tui.app.base import Base
from ipttrace.tui.rows.playing import Clock
from ipttrace.tui.widgets.prompt import Ask

SECOND: Final = 1_000_000_000
SCRUB: Final = 5 * SECOND
TICK: Final = 0.05  # s between two pictures of a recording that is played
_RELATIVE: Final = re.compile(r"([+-])(\d+(?:\.\d+)?)(ms|s|m|h|)")
# Of what nanoseconds since the epoch can be; what a clock can show ends earlier.
_LAST: Final = 2**62
_UNITS: Final = {"ms": 10**6, "s": SECOND, "": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(\.\d+)?)?")


def moment(text: str, here: int) -> int | None:
    """The moment that a person means, ns since the epoch; None where it is none.

    `12:30`, `12:30:05.25` of the day of `here`, local time; `2026-11-21T12:30:05`;
    `-30s`, `+5m` from `here` (ns).
    """
    text = text.strip()
    if found := _RELATIVE.fullmatch(text):
        sign, number, unit = found.groups()
        step = int(min(float(number) * _UNITS[unit], _LAST))
        return min(max(here + (step if sign == "+" else -step), 0), _LAST)
    if found := _OF_DAY.fullmatch(text):
        hour, minute, second, part = found.groups()
        if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 60:
            return None
        day = time.localtime(here // SECOND)
        whole = (*day[:3], int(hour), int(minute), int(second or 0), 0, 0, -1)
        return int(time.mktime(whole)) * SECOND + int(float(part or 0) * SECOND)
    try:
        return int(datetime.fromisoformat(text).timestamp() * SECOND)
    except (ValueError, OverflowError, OSError):
        return None


class Timing(Base):
    """Actions of the app."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("at", "go_to_time", "go to a time: 12:30:05, -30s", show=False),
        Binding("P", "play", "play a recording from here at its own speed, or stop", show=False),
        Binding("greater_than_sign", "speed(1)", "play faster", show=False),
        Binding("less_than_sign", "speed(-1)", "play slower", show=False),
        Binding("full_stop", "scrub(1)", "5 s on", show=False),
        Binding("comma", "scrub(-1)", "5 s back", show=False),
    ]

    clock: Clock | None = None  # while a recording is played

    def _here(self) -> int:
        """The time of the row under the cursor, else of the newest."""
        row = self.view.row
        return self.store.newest if row is None else row.time

    def action_go_to_time(self) -> None:
        self.prompt.ask(
            Ask(
                "go to",
                self._go_to,
                placeholder="12:30:05, 2026-11-21T12:30, -30s, +5m",
                check=lambda text: (
                    None
                    if moment(text, self._here()) is not None
                    else ("a time is 12:30:05, 2026-11-21T12:30, -30s or +5m", 0)
                ),
            )
        )

    def _go_to(self, text: str) -> None:
        time_ = moment(text, self._here())
        if time_ is None or not len(self.store):
            self.say("there is no row to go to", error=True)
            return
        self.action_view("trace")
        self._move_to_time(time_)

    def _move_to_time(self, time_: int) -> None:
        if self.clock is not None:
            oldest = self.store.time(self.store.first)
            self.clock.put(min(max(time_, oldest), self.store.newest))
            self.view.pull()
            self.look()
            if self.rows.follow:  # the clock is what is followed
                return
        lens = self.looking.lens
        self.rows.move_to(min(lens.position(self.store.at(time_)), lens.end - 1))

    def action_scrub(self, step: int) -> None:
        here = self._here() if self.clock is None else self.clock.time
        self._move_to_time(here + step * SCRUB)

    def action_play(self) -> None:
        if self.live:
            self.say("rows come as they happen: a recording can be played", error=True)
            return
        if not len(self.store):
            self.say("there is no row to play", error=True)
            return
        if self.clock is not None and not self.clock.running:
            if self.clock.time >= self.store.newest:
                self.clock.put(self.store.time(self.store.first))
            self.clock.run(True)
        elif self.clock is not None:
            self.clock.run(False)
        else:
            self.play(self._here() if not self.rows.follow else self.store.time(self.store.first))
        self.look()

    def play(self, start: int) -> None:
        """Play from this time on."""
        self.clock = Clock()
        self.clock.put(start)
        self.clock.run(True)
        self.rows.follow = True
        self.rows.paused = False
        self.looking.play(self.clock)
        self.view.pull()

    def action_speed(self, step: int) -> None:
        if self.clock is None:
            self.action_play()
            return
        if self.clock.turn(step) is None:
            # As fast as it goes: all of it is there.
            self.clock = None
            self.looking.play(None)
            self.view.pull()
        self.look()

    def tick(self) -> None:
        """A played recording goes on."""
        if self.clock is None or not self.clock.running:
            return
        if self.over and self.clock.time > self.store.newest:
            self.clock.put(self.store.newest)
            self.clock.run(False)
        self.view.pull()

    def playing(self) -> str:
        """The word for it in the bar."""
        if self.clock is None:
            return ""
        second = self.clock.time // SECOND
        at = time.strftime("%H:%M:%S", time.localtime(second))
        return f"{'▶' if self.clock.running else '⏸'} {at} {self.clock.speed:g}×"
