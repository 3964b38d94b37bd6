# SPDX-License-Identifier: GPL-2.0-only
"""EXPR: libpcap compiles it, nftables gets what it can express, the rest is checked here."""
