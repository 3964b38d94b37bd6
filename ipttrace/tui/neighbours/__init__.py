# SPDX-License-Identifier: GPL-2.0-only
"""The pane of the kernel's tables: neighbours, reassembly, conntrack.

- `vendors`: vendors of network cards
- `words`: the text of neighbour tables, devices and neighbours
- `sections`: the text of reassembly and conntrack
- `pane`: the widget
"""
