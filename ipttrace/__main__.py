# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace`: the same as the command ipttrace."""

from __future__ import annotations

import sys

from ipttrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
