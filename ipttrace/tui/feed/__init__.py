# SPDX-License-Identifier: GPL-2.0-only
"""From a source's bytes to a trace: live agents, other hosts, recorded files."""
