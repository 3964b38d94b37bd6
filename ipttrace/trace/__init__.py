# SPDX-License-Identifier: GPL-2.0-only
"""Frames of a stream in, rows out, and everything that can be asked about rows.

arrays      what numpy lacks: keyed hashes, bounded maps, joining records
decode      packet headers: columns of many packets, or one packet field by field
rules       texts and counters of rules, by generation
neighbours  ARP and NDP tables over time
fragments  which rows are fragments of one packet
tables  reassembly and conntrack over time
calls       records joined to calls, calls to journeys, packets to flows
row         one traversal or station, as shown to a person
store       the columns of the rows that are held
drops       packets outside the tables: stations, and what drops mean
sockets     stages of sockets, and which connections they are of
session     a trace: feeds on frames, fills a store
selection   the rows that a query matches, by position
query       the query language
tally       hits, flows, totals and costs
story       one packet's journey in full

Pure: no I/O, no bcc, pyroute2, textual, socket or subprocess, nothing of capture.
"""
