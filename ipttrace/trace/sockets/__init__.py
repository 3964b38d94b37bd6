# SPDX-License-Identifier: GPL-2.0-only
"""Stages of sockets: records → stages of connections, each with what is known of it so far.

frames       records and PROCESSES frames, checked
connections  which stages are of the same connection, and what they have in common
stage        one stage, as views show it
words        what it means
owners       which process has the socket of a row's packet
listing      connections and listeners with all their stages, for a view

Must not do I/O.
"""

from __future__ import annotations

from ipttrace.trace.sockets.connections import Sockets
from ipttrace.trace.sockets.listing import Line, Listing
from ipttrace.trace.sockets.owners import Owners
from ipttrace.trace.sockets.stage import Process, Stage

__all__ = ["Line", "Listing", "Owners", "Process", "Sockets", "Stage"]
