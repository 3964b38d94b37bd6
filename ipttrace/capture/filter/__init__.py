# SPDX-License-Identifier: GPL-2.0-only
"""EXPR as a filter: for the kernel as classic BPF, for nf_tables as rules.

- pcap: compiles an expression to classic BPF, with libpcap
- opcodes: the opcodes of classic BPF by name
- paths: the conditions of each path through a program that ends in a match
- nft: the paths as nf_tables rules, as far as nf_tables can express them
- ebpf: programs translated, for what the kernel does not take as it is
- headers: runs a program on delivered headers, for what the kernel cannot match exactly
"""
