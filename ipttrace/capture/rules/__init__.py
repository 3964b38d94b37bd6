# SPDX-License-Identifier: GPL-2.0-only
"""The texts of rules, generation by generation, for all engines.

- kernel_changes: changes of legacy tables, as the kernel module reports them
- kernel_watch: legacy tables' texts, for each of these changes
- netlink_watch: nftables and legacy tables, whose changes the netlink engine reports
- base: what both share: start and end, notes, CPU time
- pauses: who changes rules all the time is read less often
- frames: the RULES and COUNTERS frames that both yield
- nft_texts: the texts of nftables' rules, by the commands of nft and iptables-nft
- nft_known: texts that were read, by the rules' handles, for the generations that follow
- nft_listing: the text of each rule in what nft lists
- nft_expressions: a rule's counter, and whether iptables prints all of the rule

Legacy tables are read by capture/iptables_save.py.  Must not write the stream.
"""
