# SPDX-License-Identifier: GPL-2.0-only
"""nf_tables over netlink: what is asked of it, and what it reports.

wire         requests as bytes, and the socket that sends them
nftrace      which rules end the tracing of a packet
rewrites     what a rule may change of a packet
dump         snapshots of a ruleset
xt_bpf       any filter as a match of a rule
flip_rules   a filter as the rules of the flip table
stale        whose a flip table is, and those that dead processes left
table        the flip table, which sets nf_trace on packets that match the filter
devices      what it does at the ingress of devices
decode       trace messages to events
generations  the rule number, hook and priority of an event, in the ruleset of its time
"""
