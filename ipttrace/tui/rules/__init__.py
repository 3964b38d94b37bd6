# SPDX-License-Identifier: GPL-2.0-only
"""The rules view: a namespace's rules with what hit them."""
