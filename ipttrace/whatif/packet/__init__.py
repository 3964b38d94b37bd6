# SPDX-License-Identifier: GPL-2.0-only
"""What to send.

    spec        a packet as described, before it has bytes
    words       PACKET: words to a spec
    options     what may follow a packet's addresses
    build       a spec to the bytes of an IP packet
    repair      a packet of which only the first bytes are known, made whole again
    recorded    packets from recordings, pcap files and hexadecimal digits

Must not send anything.
"""
