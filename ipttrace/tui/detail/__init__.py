# SPDX-License-Identifier: GPL-2.0-only
"""One row in full: its journey, conntrack entry, headers and bytes.

- `wrap`: lines of cells, wrapped to a width
- `packet`: headers and bytes
- `stations`: what happened between the tables, why a packet died
- `lines`: all lines about a row
- `stations`, `fragments`, `packet`: those about what happened between the tables, about
  fragments, and about headers and bytes
- `pane`: the widget that draws and scrolls them
"""

from __future__ import annotations

from ipttrace.tui.detail.lines import KnownNames
from ipttrace.tui.detail.pane import Detail

__all__ = ["Detail", "KnownNames"]
