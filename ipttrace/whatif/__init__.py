# SPDX-License-Identifier: GPL-2.0-only
"""A packet sent through a copy of the rules, and what the kernel does with it there.

    errors      the errors of all parts
    packet      what to send: from words, recordings, files
    snapshot    a host's network and rules, as read or as files have them
    copy        the network and the rules in namespaces of their own; sends packets there
    answer      the rows, and what became of the packet
    service     one answer, for the screen
    checks      tests of a firewall
    compare     the packets of a recording through two sets of rules
    whynot      which conditions of a rule a packet did not meet

A packet and a snapshot are values.  `copy.running()` makes a copy of a snapshot, `answer.ask()`
sends a packet through it.  What compares rules or tests them asks several times, of one or
more copies.
"""
