# SPDX-License-Identifier: GPL-2.0-only
"""The texts of rules by generation, for every engine."""
