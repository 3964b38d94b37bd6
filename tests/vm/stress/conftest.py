# SPDX-License-Identifier: GPL-2.0-only
"""Long floods with everything changing at once, for a debug kernel.

Run by ``make vm-test KERNEL=debug``, in a VM that emulates all CPUs in one thread, for the
reason in tests/vm/patching.
"""

from __future__ import annotations

import os

WANTED = os.environ.get("IPTTRACE_STRESS") == "1"

collect_ignore_glob = [] if WANTED else ["test_*.py"]
