# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace.lab.traffic`: sends lab traffic from a shell."""

from __future__ import annotations

from ipttrace.lab.traffic.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
