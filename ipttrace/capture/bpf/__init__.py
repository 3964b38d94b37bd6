# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine: traces with BPF programs, without a kernel module.

From the bottom up; no file imports one below it in this list:

runs      runs of packets through chains and tables, as the programs write them
alike     equal rows among many
cursors   which generations of the rules runs may be of
records   the records of runs, with what is known of each kind of hit
calls     runs of nftables to records of calls, with what the rulesets determine
legacy_calls  those of legacy tables
follow    the programs that follow packets where the kernel clears nf_trace
programs  which objects are loaded, their ring and their counters
engine    the programs, and the netlink engine's flip tables and rulesets, together
"""
