# SPDX-License-Identifier: GPL-2.0-only
"""The list of rows: its columns, its filters, playback of a recording.

- `list`: the widget: a window on the rows shown, its cursor and its keys
- `own_scroll`: its scrolling, apart from the user's
- `row_strips`: draws and remembers the list's lines
- `columns`: the columns that there are; `row_cells`: a row's text in each
- `columns_dialog`: the user chooses, moves and sizes them
- `layout`: which columns fit a width
- `titles`: the line of column titles
- `shown`: the rows that are shown: filters, selection, search
- `search`: rows that contain a text as it is shown
- `filters`: the stack of filters; `filter_words`: each in words; `filter_bar`: the bar
  that shows them
- `playback`: the clock of a recording that is played, and the rows up to its time
- `empty`: what is shown while there is no row
"""

from __future__ import annotations

from ipttrace.tui.rows.list import Rows
from ipttrace.tui.rows.shown import ShownRows

__all__ = ["Rows", "ShownRows"]
