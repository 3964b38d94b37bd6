# SPDX-License-Identifier: GPL-2.0-only
"""Legacy tables without a kernel module: what they log of traced packets.

logger_guard  notes of old loggers, and the process that restores them after a crash
logger        sets namespaces' loggers to nfnetlink_log, and restores them
decode        nfnetlink_log's messages to columns
lock          how often tables were replaced at most, by iptables' lock
sessions      what two readings of the tables may have missed, by the lock
printing      iptables-save in a thread, while tables go on to be read
rules         which rules were in force when, and their texts
tables        what rules make of a logged event
"""
