# SPDX-License-Identifier: GPL-2.0-only
"""The kernel cache's only error.

Must not import anything.
"""

from __future__ import annotations


class KernelError(Exception):
    """A kernel is not available; the text is one line for the user, with what to do."""
