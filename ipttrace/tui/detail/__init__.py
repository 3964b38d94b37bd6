# SPDX-License-Identifier: GPL-2.0-only
"""One row in full: its journey, conntrack entry, headers and bytes.

- `wrap`: lines of cells, wrapped to a width
- `lines`: all lines about a row
- `pane`: the widget that draws and scrolls them
"""
