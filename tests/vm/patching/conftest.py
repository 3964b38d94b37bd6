# SPDX-License-Identifier: GPL-2.0-only
"""Tests that patch the kernel's code while other CPUs run it: for a VM of their own.

QEMU before 8.1, emulating each CPU in a thread, may go on running an int3 that
is no longer there: the guest hangs at it, or jumps to 0 in kprobes' handler.
Hence a machine that emulates all CPUs in one thread (``--one-thread``); CPUs
still take turns in mid function.
"""

from __future__ import annotations

import os

ALONE = os.environ.get("IPTTRACE_PATCHING") == "1"

collect_ignore_glob = [] if ALONE else ["test_*.py"]
