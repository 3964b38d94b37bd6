# SPDX-License-Identifier: GPL-2.0-only
"""Tests that patch the kernel's code while other CPUs run it, in a VM of their own.

QEMU before 8.1, with a thread for each CPU, may still run an int3 that was removed: the
guest hangs, or kprobes' handler jumps to 0.  Therefore this VM emulates all CPUs in one
thread (``--one-thread``); they still alternate in the middle of functions.
"""

from __future__ import annotations

import os

ALONE = os.environ.get("IPTTRACE_PATCHING") == "1"

collect_ignore_glob = [] if ALONE else ["test_*.py"]
