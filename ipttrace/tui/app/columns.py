# SPDX-License-Identifier: GPL-2.0-only
"""The command that lets the user choose the columns.  Must not draw."""

from __future__ import annotations

from ipttrace.text import clean
from ipttrace.tui.app import configuration
from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.config.toml import ConfigError
from ipttrace.tui.rows.columns_dialog import ColumnsChoice, ColumnsDialog
from ipttrace.tui.rows.layout import Wanted


class Columns:
    """The app's columns of rows."""

    def __init__(self, app: BaseApp, wanted: Wanted) -> None:
        self._app = app
        self._wanted = wanted  # (): those that fit

    def ask(self, at: str = "") -> None:
        """Opens the dialog, with the cursor on the column `at`."""
        placed = {one.column.key: one.width for one in self._app.rows.columns}
        self._app.push_screen(ColumnsDialog(self._wanted, placed, at), self._choose)

    def _choose(self, choice: ColumnsChoice | None) -> None:
        if choice is None:
            return
        self._wanted = choice.columns
        self._app.rows.show_columns(choice.columns)
        if not choice.save:
            return
        try:
            path = configuration.save_columns(choice.columns)
        except ConfigError as error:
            self._app.show_notice(str(error), error=True)
        else:
            self._app.show_notice(f"the columns were written to {clean(str(path))}")
