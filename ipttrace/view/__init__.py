# SPDX-License-Identifier: GPL-2.0-only
"""Rows as text, CSV, JSON lines and packets: everything written except the screen.

labels    names of hosts and network namespaces
values    one value as text: times, numbers, costs, paths
parts     many lines by one format
segments  lines from the store's columns, each text made once
stations  what happened outside the tables, as text
sockets   stages of sockets as text, CSV and JSON lines
text      rows as aligned columns for a terminal
csv       rows as CSV
jsonl     rows as JSON lines
pcapng    rows as packets for Wireshark
output    the protocols `View` (rows to lines) and `Output` (rows to bytes)
formats   an output by its format's name
writer    output to a file descriptor, and the summary
export    selected rows to a file

Must not import textual or ipttrace.tui.
"""
