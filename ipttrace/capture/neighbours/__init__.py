# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour tables of every traced namespace, once a second.

- watch: looks at them and yields what changed, as NEIGHBOURS frames
- messages: rtnetlink messages to plain values
- dump: the messages of a dump, from any namespace

Must not import an engine, or write the stream.
"""
