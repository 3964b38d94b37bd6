# SPDX-License-Identifier: GPL-2.0-only
"""Keys take effect in the order in which they are pressed.

Textual hands a key to the widget that has the focus, which hands it back where it
is bound elsewhere: of keys that come together, as over a slow link, one may
overtake another, and `:` may open the prompt when what was typed into it has long
been taken for commands.  Must not know what any key does.
"""

from __future__ import annotations

from typing import TypeVar

from textual import events
from textual.app import App
from textual.widgets import Input

from ipttrace.tui.widgets.entry import Entry

Result = TypeVar("Result")


class InOrder(App[Result]):
    """An app that is through with a key before it looks at the next."""

    async def on_event(self, event: events.Event) -> None:
        if (
            not isinstance(event, events.Key | events.Paste)
            or event.is_forwarded
            or not await self._done(event)
        ):
            await super().on_event(event)

    async def _done(self, event: events.Key | events.Paste) -> bool:
        """Whether it was for an entry or is bound, and has been seen to."""
        focused = self.focused
        if isinstance(event, events.Paste):
            if isinstance(focused, Entry):
                focused.paste(event.text)
            return isinstance(focused, Entry)
        if isinstance(focused, Entry):
            if event.is_printable and event.character:
                focused.add(event.character)
                return True
        elif isinstance(focused, Input):  # the palette's, which knows nothing of this
            return False
        # Textual's own way to look a key up; `active_bindings` has only the nearest binding,
        # which may pass a key on, as a field passes on "up".
        return await self._check_bindings(event.key, priority=True) or await self._check_bindings(
            event.key
        )
