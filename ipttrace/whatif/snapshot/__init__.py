# SPDX-License-Identifier: GPL-2.0-only
"""A network and its rules as values.

    model    devices, addresses, routes, settings, rules; to JSON and back
    files    files of rules, by their content
    here     of a network namespace of this host, or of another host
    read     what the calling thread's network namespace has
    nft      the text of a ruleset of nftables, in tables

Must not change anything.
"""
