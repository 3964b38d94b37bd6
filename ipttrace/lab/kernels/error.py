# SPDX-License-Identifier: GPL-2.0-only
"""The one error of the kernel cache: its text is one line for the user.

Must not import anything.
"""

from __future__ import annotations


class KernelError(Exception):
    """A kernel or a module for it cannot be had; the text says what to do."""
