# SPDX-License-Identifier: GPL-2.0-only
"""The totals view: what happened over time, and at which hooks, tables and protocols.

- `plots`: figures over time, as lines of block characters
- `tables`: the counters, in an order that the user chooses
- `view`: the widget
"""
