# SPDX-License-Identifier: GPL-2.0-only
"""The privileged half: engines in, a stream out.

From top to bottom; a file imports only what is below it:

- agent.py: moves records from an engine to the stream, obeys the control line
- choice.py: which engine runs
- doctor/: what this machine can do, and what it lacks
- sources.py: an engine, and drops and sockets beside it, armed and disarmed together
- combined.py, combined_bpf.py: the kernel engine, and netlink or BPF, as one timeline
- two_engines.py: what both pairs have in common
- joining.py: which calls of the two are of one packet, and in which order
- bpf/: the engine of BPF programs without a module, for nftables
- drops/: packets outside the tables, by BPF, beside any engine
- sockets/: stages of sockets, by BPF, beside any engine
- rules/, neighbours/, tables/: watches of rule texts, of neighbour tables, and of
  reassembly and conntrack
- kernel/: the engine of the module, for legacy tables
- netlink/: the engine without a module, for nftables and legacy tables
- filter/: EXPR, as libpcap compiles it and as nftables can express it
- engine.py, watch.py: what an engine and a watch are to the agent
- request.py, control_line.py, budget.py: what the user asked for, and how much
- hello.py: what a stream starts with
- slices.py: what an engine returned at once, in slices of complete calls
- output.py, signals.py: writing to a reader that may be slow, and stopping on a signal
- breakpoints.py: rules with the target of the module, and that they mark packets
- legacy_texts.py: which text a legacy rule has, by its bytes
- iptables_save.py, xtables.py, netns.py: legacy tables, printed and as bytes; namespaces
- libbpf/, order.py, addresses.py: what all share that load BPF programs
- containers.py: containers and units by the names of cgroups
- opaque.py: copies of records, made at once
- errors.py: the one exception with a line for the user
"""
