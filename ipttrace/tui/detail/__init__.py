# SPDX-License-Identifier: GPL-2.0-only
"""One row in full: its journey, conntrack entry, headers and bytes."""
