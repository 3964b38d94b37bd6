# SPDX-License-Identifier: GPL-2.0-only
"""Why a packet did not meet a rule: each of its conditions by itself, asked of the kernel.

    place       RULE: words to a rule of a copy
    reach       how far the packet came: which rule took it, which jump was not taken
    conditions  a rule of iptables, taken apart
    values      what of the packet a condition of iptables is about
    iptables    rules of one condition each, in the chain, in front of the rule
    nftables    likewise, made of the rule's JSON
    named       an expression of nft's JSON as nft(8) writes it
    explain     all of it for one packet
    words       lines and an object

Must not make a copy.
"""
