# SPDX-License-Identifier: GPL-2.0-only
"""Commands for the agents: arm, disarm, stations, sockets, and the filter in the kernel.

Must not feed traces or draw.
"""

from __future__ import annotations

from ipttrace.trace.query.pcap import flow_expression
from ipttrace.tui import situation as at
from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.widgets.prompt import Ask


class Agents:
    """The app's commands that go to live agents, over their control lines."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app

    def toggle_armed(self) -> None:
        """Disarms, or arms again."""
        app = self._app
        if not self._tracing:
            app.show_notice("only a live trace can be armed and disarmed", error=True)
            return
        armed = app.situation().state == at.ARMED
        if app.feeds.send({"cmd": "disarm" if armed else "arm"}):
            arming = "disarming: no packet is traced until {arm} arms again" if armed else "arming"
            app.show_notice(with_keys(arming, chosen(app)))
        else:
            self._refused()

    def toggle_stations(self) -> None:
        """Asks for stations of the packets that are traced, or no more of them."""
        app = self._app
        if not self._tracing:
            app.show_notice("stations need a live trace", error=True)
            return
        if why := app.feeds.unseen_drops():
            app.show_notice(f"stations cannot be recorded: {why}", error=True)
            return
        on = not app.feeds.stations
        if not self._switch("stations", on):
            return
        for feed in app.feeds:
            feed.stations_asked = on
        if not on:
            app.show_notice("stations are no longer recorded")
            return
        traced = app.situation().filter
        which = f"of {traced}" if traced else "of all packets; {kernel} sets a filter in the kernel"
        text = f"packets are shown between the tables too, {which}"
        app.show_notice(with_keys(text, chosen(app)))

    def toggle_sockets(self) -> None:
        """Asks for stages of sockets, or no more of them."""
        app = self._app
        if not self._tracing:
            app.show_notice("stages of sockets need a live trace", error=True)
            return
        on = not app.feeds.sockets
        if not self._switch("sockets", on):
            return
        for feed in app.feeds:
            feed.sockets_asked = on
        if not on:
            app.show_notice("sockets are no longer recorded")
            return
        # The agent may refuse, and says so.
        traced = app.situation().filter
        app.show_notice(f"asked for stages of sockets{f' of {traced}' if traced else ''}")

    def _switch(self, what: str, on: bool) -> bool:
        """Asks for these records, or no more of them; False: no agent takes commands."""
        if self._app.feeds.send({"cmd": what, "on": on}):
            return True
        self._refused()
        return False

    def ask_filter(self) -> None:
        """Opens the prompt for a filter in the kernel."""
        app = self._app
        if not self._tracing:
            app.show_notice(
                "no tracing is running here: a recording has no kernel to filter in", error=True
            )
            return
        row = app.view.row
        initial = app.situation().filter
        if row is not None and app.shown.filters.text:
            initial = flow_expression(app.store, row) or initial
        app.prompt.ask(
            Ask(
                "kernel filter",
                self._send_filter,
                initial=initial,
                placeholder="a pcap-filter expression: tcp port 443   (empty: all packets)",
                slow_check=app.check_expr,
            )
        )

    def _send_filter(self, text: str) -> None:
        if self._app.feeds.send({"cmd": "filter", "expr": text}):
            # Messages of the agents about an earlier filter no longer apply.
            self._app.notice_line.dismiss(self._app.feeds)
            self._app.show_notice(f"sent to the kernel: {text or 'all packets'}")
        else:
            self._refused()

    @property
    def _tracing(self) -> bool:
        return self._app.feeds.live and not self._app.over

    def _refused(self) -> None:
        self._app.show_notice("the agent is not accepting commands", error=True)
