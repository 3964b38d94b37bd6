# SPDX-License-Identifier: GPL-2.0-only
"""What the capture side raises for a person to read."""

from __future__ import annotations


class CaptureError(Exception):
    """Tracing cannot start or go on; the text is one line: what, and what to do."""
