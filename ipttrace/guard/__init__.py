# SPDX-License-Identifier: GPL-2.0-only
"""The guard: denies connect(), accept() and what is received, by rules, as long as it runs.

    rules       the rules in words, and what is wrong with them
    conditions  the values that a rule's conditions take
    policy      rules as the BPF programs look them up, and the same decision in Python
    layout      bpf/guard.h in numpy
    programs    the BPF programs, loaded and attached, and their events
    session     the ssh connection through which the command was given
    words       events as lines and as JSON
    sharing     gives events to programs of root that trace sockets
    running     the guard while it runs: rules that are replaced, events that are taken

BPF LSM decides in the kernel, or programs of the host's cgroup; nothing is pinned, so that all is
allowed again when the process ends.  Must not import a view or an engine.
"""
