# SPDX-License-Identifier: GPL-2.0-only
"""Legacy tables without a kernel module: what they log of traced packets.

logger_guard  notes of old loggers, and the process that restores them after a crash
logger        sets namespaces' loggers to nfnetlink_log, and restores them
decode        nfnetlink_log's messages to columns
tables        the rules now, and what they make of a logged event
"""
