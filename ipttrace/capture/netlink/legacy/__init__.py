# SPDX-License-Identifier: GPL-2.0-only
"""Legacy tables without a module: nfnetlink_log messages and the logger setting."""
