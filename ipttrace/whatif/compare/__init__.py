# SPDX-License-Identifier: GPL-2.0-only
"""The distinct packets of a recording through two copies: those whose fate differs.

    distinct    the packets of a recording, each kind once
    fates       what becomes of them in a copy, and what differs
    words       lines and an object

Must not make a copy.
"""
