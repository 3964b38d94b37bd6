# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour pane: how full the tables are, and who is in them."""
