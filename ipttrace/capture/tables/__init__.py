# SPDX-License-Identifier: GPL-2.0-only
"""Reassembly and conntrack of every traced namespace, once a second.

- watch: looks at them and yields what changed, as TABLES frames
- values: the kernel's files about them, as numbers
- counters: conntrack's counters over netlink, where the kernel has no file of them

Must not import an engine, or write the stream.
"""
