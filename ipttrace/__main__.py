# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace`: the same as the command ipttrace."""

from __future__ import annotations

import sys

from ipttrace.start import forget_current_folder

if __name__ == "__main__":
    forget_current_folder()
    from ipttrace.cli import main

    sys.exit(main())
