# SPDX-License-Identifier: GPL-2.0-only
"""The netlink engine: traces without a module, from nftables' trace and legacy' log messages."""
