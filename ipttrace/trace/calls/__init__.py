# SPDX-License-Identifier: GPL-2.0-only
"""Records joined to calls, calls to journeys, packets to flows.

waiting   records whose call is not complete yet
journey   the journey of each call: all calls of one skb
assemble  entry, rule and exit records joined to calls
flow      the flow of each packet
"""

from __future__ import annotations

from ipttrace.trace.calls.assemble import Assembler, Calls
from ipttrace.trace.calls.flow import Flows, is_tracked

__all__ = ["Assembler", "Calls", "Flows", "is_tracked"]
