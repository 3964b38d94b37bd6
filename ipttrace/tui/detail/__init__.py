# SPDX-License-Identifier: GPL-2.0-only
"""One row in full: its journey, conntrack entry, headers and bytes.

- `wrap`: lines of cells, wrapped to a width
- `lines`: all lines about a row
- `pane`: the widget that draws and scrolls them
"""

from __future__ import annotations

from ipttrace.tui.detail.lines import KnownNames
from ipttrace.tui.detail.pane import Detail

__all__ = ["Detail", "KnownNames"]
