# SPDX-License-Identifier: GPL-2.0-only
"""Opening the export dialog, and waiting for notices."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot
from textual.widgets import Input

from ipttrace.tui.app import TraceApp
from ipttrace.tui.widgets.export_dialog import ExportDialog
from tests.tui.harness import until
from tests.tui.replayed import write


async def dialog(app: TraceApp, pilot: Pilot[Any], path: str = "") -> ExportDialog:
    """Opens the dialog and types `path`."""
    await pilot.press("e")
    await until(pilot, lambda: isinstance(app.screen, ExportDialog), "the dialog")
    asked = app.screen
    assert isinstance(asked, ExportDialog)
    await until(pilot, lambda: asked.query_one(Input).has_focus)
    if path:
        await pilot.press("ctrl+u")
        await write(app, pilot, path)
    return asked


async def notice_with(app: TraceApp, pilot: Pilot[Any], text: str) -> str:
    """The notice, once it contains `text`."""
    await until(pilot, lambda: text in app.notice_line.shown[0], text)
    return app.notice_line.shown[0]
