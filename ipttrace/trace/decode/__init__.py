# SPDX-License-Identifier: GPL-2.0-only
"""Packet headers: as columns of many packets, and of one packet field by field.

protocol  numbers and names of protocols
headers   the columns of many packets at once
layer     what the field-by-field decoders share
icmp      ICMP and ICMPv6
upper     TCP, UDP and other protocols above IP
payload   DNS, TLS and text protocols
dissect   one packet, all its layers
"""
