# SPDX-License-Identifier: GPL-2.0-only
"""The Internet checksum.  Must not import anything of ipttrace."""

from __future__ import annotations

import struct


def checksum(data: bytes) -> int:
    """Returns the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\x00"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
