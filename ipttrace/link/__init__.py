# SPDX-License-Identifier: GPL-2.0-only
"""Starts agents and holds both ends of each: the stream and the control line.

    base     what both kinds of link share
    local    an agent on this host, through sudo if need be
    ssh/     agents on other hosts

Must not decode the stream.
"""
