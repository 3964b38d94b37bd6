# SPDX-License-Identifier: GPL-2.0-only
"""What numpy lacks: keyed hashes, bounded maps and whole records, many at once."""
