# SPDX-License-Identifier: GPL-2.0-only
"""nftables as bytes: trace messages, rulesets, and the table that turns tracing on."""
