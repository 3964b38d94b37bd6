# SPDX-License-Identifier: GPL-2.0-only
"""Extracts the ELF image from a bzImage, for a boot without decompression.

Under emulation a guest spends most of its boot unpacking its kernel (xz); here
that is done once, on the host.  bzImage header fields:
Documentation/arch/x86/boot.rst (setup_sects 0x1f1, payload_offset 0x248,
payload_length 0x24c).  QEMU boots an ELF image only by its PVH entry point, Xen
note 18, XEN_ELFNOTE_PHYS32_ENTRY.

Must not run anything except the decompressor.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Final

XEN_ELFNOTE_PHYS32_ENTRY: Final = 18
PT_NOTE: Final = 4
LIMIT: Final = 512 * 1024 * 1024


def extract_vmlinux(bzimage: Path, output: Path) -> bool:
    """Writes the ELF image of ``bzimage``; returns False, without a file, if QEMU cannot."""
    try:
        image = _unpack(_payload(bzimage.read_bytes()))
    except (ValueError, struct.error, lzma.LZMAError, zlib.error, OSError):
        return False
    if not has_pvh_entry(image):
        return False
    output.write_bytes(image)
    return True


def _payload(data: bytes) -> bytes:
    if data[0x202:0x206] != b"HdrS":
        (magic,) = struct.unpack_from("<4s", data, 0x202)
        raise ValueError(f"not a bzImage: {magic!r}")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x208:
        raise ValueError(f"boot protocol {version:#x} has no payload_offset")
    setup = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup + 1) * 512 + offset
    if start + length > len(data):
        raise ValueError("the payload extends past the end of the file")
    return data[start : start + length]


def _unpack(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload, LIMIT)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload, LIMIT)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # zstd exits with 1: it reports the four bytes of length after the payload as garbage.
        done = subprocess.run(["zstd", "-dcq"], input=payload, capture_output=True)
        return done.stdout
    raise ValueError(f"unknown compression: {payload[:4]!r}")


def has_pvh_entry(image: bytes) -> bool:
    """Returns whether an ELF-64 image has a PVH entry point."""
    if image[:6] != b"\x7fELF\x02\x01":
        return False
    try:
        (table,) = struct.unpack_from("<Q", image, 0x20)
        size, count = struct.unpack_from("<HH", image, 0x36)
        for number in range(count):
            kind, _, offset, _, _, length = struct.unpack_from(
                "<IIQQQQ", image, table + number * size
            )
            if kind == PT_NOTE and _has_note(image[offset : offset + length]):
                return True
    except struct.error:
        return False
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if name == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY:
            return True
        at += 12 + (name_size + 3) // 4 * 4 + (data_size + 3) // 4 * 4
    return False
