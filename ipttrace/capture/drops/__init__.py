# SPDX-License-Identifier: GPL-2.0-only
"""Packets outside the tables: drops, and a few stations on their way, by BPF, beside any engine.

From the bottom up; no file imports one below it in this list:

symbols   names of addresses in the kernel's code
owners    numbers for the processes that have sockets
places    numbers for places, stacks and reasons, and what they mean
events    what the programs write, as records
programs  which programs are loaded, their ring and their counters
source    all of it together: records, their names and their counters
alone     what takes an engine's place where only drops are traced

Must not import an engine.
"""
