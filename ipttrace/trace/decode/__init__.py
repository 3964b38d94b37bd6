# SPDX-License-Identifier: GPL-2.0-only
"""Packet headers: the columns of many packets at once, and one packet field by field."""
