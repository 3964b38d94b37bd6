# SPDX-License-Identifier: GPL-2.0-only
"""Every iptables rule that every packet hits, live."""

__version__ = "0.1.0"
