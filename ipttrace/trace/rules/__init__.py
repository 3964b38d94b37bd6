# SPDX-License-Identifier: GPL-2.0-only
"""Rule texts by generation: what each rule said when a packet met it."""
