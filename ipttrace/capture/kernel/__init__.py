# SPDX-License-Identifier: GPL-2.0-only
"""The kernel engine: builds and loads the module, arms it, reads its rings."""
