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
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen
from textual.widget import Widget

from ipttrace.trace import query
from ipttrace.tui.app import configuration
from ipttrace.tui.app.agents import Agents
from ipttrace.tui.app.asking import Asking, AskRules
from ipttrace.tui.app.base import GRACE, BaseApp
from ipttrace.tui.app.columns import Columns
from ipttrace.tui.app.exports import Exports, new_name
from ipttrace.tui.app.filtering import Filtering
from ipttrace.tui.app.help import Help
from ipttrace.tui.app.keys import KEYS, bindings_of, key_sections
from ipttrace.tui.app.playback import Playback
from ipttrace.tui.app.recordings import Recordings
from ipttrace.tui.config.settings import Settings
from ipttrace.tui.feed import Source
from ipttrace.tui.key_words import KeysInWords, in_words, names_in, with_keys
from ipttrace.tui.messages import (
    ExportEnded,
    ExportProgress,
    FilterRequested,
    RulesAnswered,
    SocketRequested,
    SocketsRequested,
    TitleClicked,
    WhyNotRequested,
)
from ipttrace.tui.plain import SIXTEEN, Ascii, has_sixteen_colours, utf8, without_colours
from ipttrace.tui.widgets.prompt import CheckText


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
        check_expr: CheckText | None = None,
        settings: Settings | None = None,
        ask_rules: AskRules | None = None,
    ) -> None:
        """See `BaseApp`.  `settings`: the user's; `ask_rules`: see `Asking`."""
        self._settings = settings or Settings()
        vars(self)["CSS"] = configuration.css(self._settings)  # before Textual reads it
        super().__init__(
            source,
            title=title,
            capacity=capacity,
            grace=grace,
            until=until,
            shown=shown,
            check_expr=check_expr,
        )
        self._ascii: list[LineFilter] = [] if utf8(os.environ) else [Ascii()]
        self.keymap = configuration.keymap(self._settings)
        if self._ascii:
            self.keymap = KeysInWords(self.keymap)
        self.set_keymap(self.keymap)
        self.register_theme(SIXTEEN)
        if self._settings.theme is not None:
            self.theme = self._settings.theme
        elif has_sixteen_colours(self.console.color_system):
            self.theme = SIXTEEN.name
            self._filters = without_colours(list(self._filters))
        self.filtering = Filtering(self)
        self.columns = Columns(self, self._settings.columns)
        self.agents = Agents(self)
        self.playback = Playback(self)
        self.exports = Exports(self)
        self.recordings = Recordings(self)
        self.asking = Asking(self, ask_rules)

    def on_mount(self) -> None:
        self.rows.show_columns(self._settings.columns)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What changes each line before it is drawn."""
        return [*super().get_line_filters(), *self._ascii]

    def get_key_display(self, binding: Binding) -> str:
        """The name of a key in the footer."""
        name = super().get_key_display(binding)
        return in_words(name) if self._ascii else name

    # Filter and search.

    def action_write(self) -> None:
        self.filtering.ask_filter()

    def action_unfilter(self) -> None:
        self.filtering.back()

    def action_unfilter_all(self) -> None:
        self.filtering.clear()

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

    def on_socket_requested(self, message: SocketRequested) -> None:
        self.show_socket()

    def action_side(self) -> None:
        self.toggle_side()

    def action_help(self) -> None:
        self.push_screen(Help(key_sections(), self.keymap, self.switcher.current or ""))

    def action_columns(self) -> None:
        self.columns.ask()

    def on_title_clicked(self, message: TitleClicked) -> None:
        self.columns.ask(message.column)

    def action_put_away(self) -> None:
        """Closes one thing: what was opened last, as far as that is known."""
        if self.exports.stop():
            return
        if self.notice_line.display:
            self.notice_line.dismiss(self.feeds)
            self.refresh_bars()
        elif self.switcher.current != "trace":
            self.show_view("trace")
        elif self.view.detailed:
            self.view.action_detail()
        elif self.shown.filters.text:
            self.filtering.back()

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

    def action_stations(self) -> None:
        self.agents.toggle_stations()

    def on_sockets_requested(self, message: SocketsRequested) -> None:
        self.agents.toggle_sockets()

    def action_kernel(self) -> None:
        self.agents.ask_filter()

    # The rules as they are now.

    def action_what_if(self) -> None:
        self.asking.what_if()

    def on_why_not_requested(self, message: WhyNotRequested) -> None:
        self.asking.why_not(message.rule)

    def on_rules_answered(self, message: RulesAnswered) -> None:
        self.asking.end(message)

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
            self.show_notice(f"cannot write the screenshot {path}: {error.strerror}", error=True)
        else:
            self.show_notice(f"screenshot: {path}")

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
                    with_keys(binding.tooltip or binding.description, self.keymap).capitalize(),
                    f"key: {names_in(self.keymap, binding.id, binding.key)}",
                    # Later: the palette is still the screen on top.
                    partial(self.call_later, place.run_action, binding.action),
                )
        wanted = ("Theme", "Maximize", "Minimize")
        yield from (
            command for command in super().get_system_commands(screen) if command.title in wanted
        )
