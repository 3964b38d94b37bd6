# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace.lab.vm`: one command in the VM, by hand."""

from __future__ import annotations

import sys

from ipttrace.lab.vm import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
