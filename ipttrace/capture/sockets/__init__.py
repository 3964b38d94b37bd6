# SPDX-License-Identifier: GPL-2.0-only
"""Stages of sockets: who listens, connects, accepts and reads, and what becomes of a handshake.

    programs   the BPF programs (bpf/sockets.bpf.c), loaded and attached
    expr       which stages EXPR takes
    processes  the processes of stages, numbered and described
    guards     what guards on this host say that they deny
    denials    joined to the stages
    source     all of it as a source of records, beside an engine

Must not import an engine.
"""
