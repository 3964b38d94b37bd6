# SPDX-License-Identifier: GPL-2.0-only
"""A network and its rules in namespaces of their own, without a way out.

    running     starts and ends a copy; what to do there is asked over a socket
    trace       the agent's stream, from arming to disarming
    inside      the first process in there: builds the copy, obeys
    confined    how it gives up all rights over the host
    network     devices, addresses, routes, settings
    restore     rules, by the programs that restore them
    portions    rules that do not fit into one transaction
    changes     commands of a person that change the rules
    commands    programs in there: bounded, without children
    wires       frames into the devices and out of them
    conntrack   connections that exist before a packet comes
    counters    what the kernel counts when it discards packets

Devices are veth pairs: the inner end has the name, number and addresses of the real device, the
outer end lies in a second namespace, where frames are sent and read.  The namespaces end with
the processes in them, and these with the program.
"""
