# SPDX-License-Identifier: GPL-2.0-only
"""The last line: the keys that work now, each of them whole or not at all.

Must not know any key: Textual's footer collects them.
"""

from __future__ import annotations

from textual import events
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from ipttrace.tui.cells import cell_len


class KeyLine(Footer):
    """A footer without the key that its right edge would cut: "e" in place of "e Export"."""

    async def recompose(self) -> None:
        """Shows the keys that work now."""
        await super().recompose()
        self.call_after_refresh(self._fit)

    def on_resize(self, event: events.Resize) -> None:
        """More or fewer keys fit."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        # By their text, not by their places: the layout cuts the last one to the room left.
        # Invisible, not removed: the first key stays even if it does not fit.
        end = 0
        for number, key in enumerate(self.query(FooterKey)):
            end += cell_len(str(key.render()))
            key.visible = not number or end <= self.size.width
