# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of the streams while they are shown.

Must not write files itself: each `Feed` writes its own.
"""

from __future__ import annotations

import os

from ipttrace.text import clean
from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.app.exports import new_name
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.widgets.prompt import Ask


class Recordings:
    """The record command."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app

    def toggle(self) -> None:
        """Ends the recordings, or asks for the file of a new one."""
        app = self._app
        recording = [feed for feed in app.feeds if feed.tap.open]
        if recording:
            for feed in recording:
                feed.end_recording()
            if not any(feed.recording_error for feed in recording):
                files = ", ".join(feed.recorded for feed in recording)
                app.show_notice(f"recording stopped: {files}")
            app.refresh_bars()
            return
        if app.over or not any(feed.trace.hello for feed in app.feeds):
            app.show_notice("no stream to record: e exports the rows that are held", error=True)
            return
        app.prompt.ask(Ask("record to", self._start, initial=new_name("iptr"), check=self._check))

    def _check(self, text: str) -> tuple[str, int] | None:
        if not text:
            return "enter a file name", 0
        for feed in self._app.feeds:
            if os.path.lexists(os.path.expanduser(self._path(text, feed.trace.host))):
                return "this file already exists: choose another name", 0
        return None

    def _path(self, text: str, host: int) -> str:
        """The file of one host: several streams cannot share one."""
        if len(self._app.feeds) == 1:
            return text
        root, ending = os.path.splitext(text)
        return f"{root}-{host + 1}{ending}"

    def _start(self, text: str) -> None:
        started = []
        for feed in self._app.feeds:
            if feed.over or not feed.trace.hello:
                continue
            path = self._path(text, feed.trace.host)
            try:
                feed.record(os.path.expanduser(path))
            except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
                why = getattr(error, "strerror", None) or error
                self._app.show_notice(f"{clean(path)}: {why}", error=True)
                return
            started.append(clean(path))
        ends = with_keys("{record} stops it", chosen(self._app))
        self._app.show_notice(f"recording to {', '.join(started)}: {ends}")
