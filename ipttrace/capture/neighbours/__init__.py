# SPDX-License-Identifier: GPL-2.0-only
"""Reads the neighbour tables (RTM_GETNEIGHTBL) of every traced namespace."""
