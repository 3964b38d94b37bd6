# SPDX-License-Identifier: GPL-2.0-only
"""The errors of whatif; each text is one line, safe for a terminal."""

from __future__ import annotations

from ipttrace.trace.query.error import QueryError


class WhatIfError(Exception):
    """The copy cannot be made, or the packet cannot be sent through it."""


class PacketError(QueryError):
    """The words for a packet are wrong; `caret()` shows where."""
