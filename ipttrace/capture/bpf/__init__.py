# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine: traces with BPF programs, without a kernel module.

From the bottom up; no file imports one below it in this list:

ring      reads the ring to which the programs write
runs      runs of packets through chains and tables, as the programs write them
btf       what the kernel's BTF says of its functions
filter    EXPR for the programs, if the flip table is not exact
objects   a compiled object, loaded; its programs, attached together
calls     runs of nftables to records of calls, with what the rulesets determine
legacy_calls  those of legacy tables
programs  which objects are loaded, their ring and their counters
engine    the programs, and the netlink engine's flip tables and rulesets, together
"""
