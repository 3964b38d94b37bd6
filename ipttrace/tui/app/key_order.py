# SPDX-License-Identifier: GPL-2.0-only
"""An app in which keys take effect in the order in which they are pressed.

Textual passes a key to the focused widget, which passes it back if it is bound
elsewhere.  If several keys come at once, as over a slow link, one may overtake
another: the text typed after `:` would run commands before the prompt opens.  Must
not know what any key does.
"""

from __future__ import annotations

from typing import TypeVar

from textual import events
from textual.app import App
from textual.widgets import Input

from ipttrace.tui.widgets.entry import Entry

Result = TypeVar("Result")


class OrderedKeysApp(App[Result]):
    """Finishes with a key before it looks at the next."""

    async def on_event(self, event: events.Event) -> None:
        if (
            not isinstance(event, events.Key | events.Paste)
            or event.is_forwarded
            or not await self._handled(event)
        ):
            await super().on_event(event)

    async def _handled(self, event: events.Key | events.Paste) -> bool:
        """Handles keys and pastes for an entry, and keys that are bound.  False: neither."""
        focused = self.focused
        if isinstance(event, events.Paste):
            if isinstance(focused, Entry):
                focused.paste(event.text)
            return isinstance(focused, Entry)
        if isinstance(focused, Entry):
            if event.is_printable and event.character:
                focused.add(event.character)
                return True
        elif isinstance(focused, Input):  # the palette's, which handles its keys itself
            return False
        # Not `active_bindings`: it has only the nearest binding of a key, which may pass
        # the key on, as a field does with "up".
        return await self._check_bindings(event.key, priority=True) or await self._check_bindings(
            event.key
        )
