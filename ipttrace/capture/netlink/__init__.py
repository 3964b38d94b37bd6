# SPDX-License-Identifier: GPL-2.0-only
"""The netlink engine: traces without a kernel module, from nftables' and legacy tables' messages.

From the bottom up; no file imports one below it in this list:

attributes    parses the netlink attributes of many messages at once
reader        netlink sockets, and the thread that reads them
wake          the descriptors for which the agent waits
nft/          nf_tables: requests, snapshots, the flip table, trace messages
names         long names of tables and chains in records
conntrack     conntrack entries as messages have them
events        dtypes of events, chains by number, unique numbers
changes       changes of rules, for the watch that reads their texts
legacy/       legacy tables: the logger setting, log messages, rules
keys          by which a packet is recognised, though rules change it
conntrack_table  conntrack entries that nftables' messages name, looked up
copies        which events are of copies that TEE sent
fading        maps that forget what was written long ago
journeys      which packet an event of nftables is of
legacy_journeys  which packet an event of a legacy table is of
arrival       packets as they came to a chain, though its first rule changed them
reached       the later chains that packets met
calls         events to records of calls
context       what all namespaces of a run share
legacy_timeline  legacy rules by time, and what events meant at theirs
legacy_trace  the legacy tables of one namespace, from messages to calls
quiet         where held events are cut, so that those of a packet are taken together
namespace     one traced namespace: sockets, flip table, rulesets
counters      sums of several namespaces' counters
engine        namespaces that appear and disappear, and one stream of records
"""
