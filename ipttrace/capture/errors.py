# SPDX-License-Identifier: GPL-2.0-only
"""The exception that capture raises for a person to read.  Must not import anything of ipttrace."""

from __future__ import annotations


class CaptureError(Exception):
    """Tracing cannot start or continue; the text is one line: what is wrong, what to do."""
