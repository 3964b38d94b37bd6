# SPDX-License-Identifier: GPL-2.0-only
"""Packets outside the tables: station records → rows in the packets' journeys.

explain    what a station means, in one sentence
reasons    sentences by the kernel's reason
functions  sentences by the function that dropped the packet
where      places in the kernel's code
stations   a stream's stations, joined to its calls
joining    which records are of the same packet
facts      what is compared for that
places     names of places, stacks and reasons by number
columns    stations as the store's columns; columns in order of time

Must not do I/O.
"""

from __future__ import annotations

from ipttrace.trace.drops.explain import explain, neighbour, route
from ipttrace.trace.drops.stations import Stations

__all__ = ["Stations", "explain", "neighbour", "route"]
