# SPDX-License-Identifier: GPL-2.0-only
"""A packet sent through a copy, and what became of it.

    ask        sends a packet; its rows and its fate
    framing    a packet as the frames that come in
    fate       left, delivered, or where it died
    differs    rules on its way that the copy cannot answer for
    words      the answer as lines and as an object

Must not make a copy.
"""
