# SPDX-License-Identifier: GPL-2.0-only
"""The live screen: keys tied to commands, and the command palette.

Must not contain more of a command than its call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen
from textual.widget import Widget

from ipttrace.trace import query
from ipttrace.tui.app.agents import Agents
from ipttrace.tui.app.base import GRACE, BaseApp
from ipttrace.tui.app.exports import Exports, new_name
from ipttrace.tui.app.filtering import Filtering
from ipttrace.tui.app.help import Help
from ipttrace.tui.app.keys import KEYS, bindings_of, key_names, key_sections
from ipttrace.tui.app.playback import Playback
from ipttrace.tui.app.recordings import Recordings
from ipttrace.tui.feed import Source
from ipttrace.tui.messages import ExportEnded, ExportProgress, FilterRequested


class TraceApp(BaseApp):
    """See `BaseApp`."""

    BINDINGS: ClassVar[list[BindingType]] = [*KEYS]

    def __init__(
        self,
        source: Source | Sequence[Source],
        *,
        title: str,
        capacity: int = 1_000_000,
        grace: float = GRACE,
        until: query.Query | None = None,
        shown: query.Query | None = None,
    ) -> None:
        """See `BaseApp`."""
        super().__init__(
            source, title=title, capacity=capacity, grace=grace, until=until, shown=shown
        )
        self.filtering = Filtering(self)
        self.agents = Agents(self)
        self.playback = Playback(self)
        self.exports = Exports(self)
        self.recordings = Recordings(self)

    # Filter and search.

    def action_write(self) -> None:
        self.filtering.ask_filter()

    def action_unfilter(self) -> None:
        self.filtering.back()

    def action_search(self) -> None:
        self.filtering.ask_search()

    def on_filter_requested(self, message: FilterRequested) -> None:
        self.filtering.apply(message)

    # The list and the other views.

    def action_pause(self) -> None:
        self.rows.toggle_pause()

    def action_follow(self) -> None:
        self.rows.toggle_follow()

    def action_view(self, name: str) -> None:
        self.show_view(name)

    def action_side(self) -> None:
        self.toggle_side()

    def action_help(self) -> None:
        self.push_screen(Help(key_sections()))

    def action_put_away(self) -> None:
        if not self.exports.stop():
            self.notice_line.dismiss(self.feeds)
            self.refresh_bars()

    async def action_quit(self) -> None:
        self.stop_and_exit()

    # Time.

    def action_go_to_time(self) -> None:
        self.playback.ask_time()

    def action_play(self) -> None:
        self.playback.toggle()

    def action_speed(self, step: int) -> None:
        self.playback.change_speed(step)

    def action_scrub(self, step: int) -> None:
        self.playback.scrub(step)

    # The agents.

    def action_arm(self) -> None:
        self.agents.toggle_armed()

    def action_kernel(self) -> None:
        self.agents.ask_filter()

    # Files.

    def action_export(self) -> None:
        self.exports.ask()

    def on_export_progress(self, message: ExportProgress) -> None:
        self.exports.show_progress(message)

    def on_export_ended(self, message: ExportEnded) -> None:
        self.exports.end(message)

    def action_record(self) -> None:
        self.recordings.toggle()

    def action_picture(self) -> None:
        path = new_name("svg")
        try:
            self.save_screenshot(path, path=os.getcwd())
        except OSError as error:
            self.show_notice(f"no picture was written: {error.strerror}", error=True)
        else:
            self.show_notice(f"a picture of the screen: {path}")

    # The command palette.

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """All keys that work now, by description, and some of Textual's commands."""
        places: list[App[Any] | Widget] = [self.rows, self.view, self]
        if self.view.detailed:
            places.insert(0, self.view.detail)
        if self.switcher.current != "trace" and self.switcher.visible_content is not None:
            places.insert(0, self.switcher.visible_content)
        for place in places:
            for binding in bindings_of(TraceApp if place is self else type(place)):
                yield SystemCommand(
                    (binding.tooltip or binding.description).capitalize(),
                    f"key: {key_names(binding.key)}",
                    # Later: the palette is still the screen on top.
                    partial(self.call_later, place.run_action, binding.action),
                )
        wanted = ("Theme", "Maximize", "Minimize")
        yield from (
            command for command in super().get_system_commands(screen) if command.title in wanted
        )
