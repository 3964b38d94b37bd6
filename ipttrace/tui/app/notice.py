# SPDX-License-Identifier: GPL-2.0-only
"""The notice: the one line for what the user must not overlook.

In order of priority: what was done on a key, for some seconds; a recording that
broke off; streams that broke off; rows no longer held; the agents' latest warning.
Must not change feeds or rows.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from textual.content import Content
from textual.widgets import Static

from ipttrace.text import clean
from ipttrace.tui.cells import counted
from ipttrace.tui.feed.feeds import Feeds
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.rows import Rows

SHOWN_FOR: Final = 4.0  # s that a notice stays


class NoticeLine(Static):
    """Hidden while there is no notice."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self.display = False
        self.shown = ("", False)  # text, and whether it is an error
        self._put: tuple[str, bool, float] = ("", False, 0.0)  # the same, and until when
        self._read: dict[int, int] = {}  # notes dismissed, by host

    def put(self, text: str, error: bool) -> None:
        """Makes `text` the notice of the next seconds."""
        self._put = clean(text), error, monotonic() + SHOWN_FOR

    def dismiss(self, feeds: Feeds) -> None:
        """Removes the notice, and the agents' notes so far."""
        self._put = ("", False, 0.0)
        for feed in feeds:
            feed.recording_error = ""
            self._read[feed.trace.host] = feed.trace.note_count

    def refresh_from(self, feeds: Feeds, rows: Rows) -> None:
        """Shows the notice with the highest priority."""
        notice = self._choose(feeds, rows)
        if notice != self.shown:  # an update lays out the screen
            self.shown = text, error = notice
            self.display = bool(text)
            self.set_class(error, "-error")
            self.update(Content(text))

    def _choose(self, feeds: Feeds, rows: Rows) -> tuple[str, bool]:
        if monotonic() < self._put[2]:
            return self._put[:2]
        for feed in feeds:
            if feed.recording_error:
                return feed.recording_error, True
        broken = [feed for feed in feeds if feed.broken_off]
        if broken:
            reasons = " · ".join(feeds.prefix(feed) + feed.reason for feed in broken)
            return reasons, any(feed.error is not None for feed in broken)
        if rows.gone:
            return (
                f"{counted(rows.gone, 'row')} on the frozen screen"
                f" {'is' if rows.gone == 1 else 'are'} no longer held"
                " (the lines shown stay until you move); "
                + with_keys("{pause} continues", chosen(self))
            ), False
        if rows.evicted:
            text = "The rows you were reading are no longer held; {pause} freezes the display"
            return with_keys(text, chosen(self)), False
        notice = ("", False)
        for feed in feeds:
            for level, note in feed.trace.notes_after(self._read.get(feed.trace.host, 0)):
                if level in ("warn", "error"):
                    notice = feeds.prefix(feed) + note, level == "error"
        return notice
