# SPDX-License-Identifier: GPL-2.0-only
"""Records joined to calls, calls to journeys, packets to flows."""
