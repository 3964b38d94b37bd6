# SPDX-License-Identifier: GPL-2.0-only
"""The list of rows: columns, filters, search, playing a recording."""
