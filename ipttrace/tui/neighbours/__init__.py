# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour pane: how full the ARP and NDP tables are, and the neighbours in them.

- `vendors`: vendors of network cards
- `words`: the text of tables, devices and neighbours
- `pane`: the widget
"""
