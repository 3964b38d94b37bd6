# SPDX-License-Identifier: GPL-2.0-only
"""Records joined to calls, calls to journeys, packets to flows.

waiting     records whose call is not complete yet
journey     the journey of each call: all calls of one skb
assemble    entry, rule and exit records joined to calls
flow        the flow of each packet
translated  which flow a packet's addresses belong to behind NAT
aliases     flows that turned out to be one
"""

from __future__ import annotations

from ipttrace.trace.calls.aliases import Aliases
from ipttrace.trace.calls.assemble import Assembler, Calls
from ipttrace.trace.calls.flow import Flows, is_template

__all__ = ["Aliases", "Assembler", "Calls", "Flows", "is_template"]
