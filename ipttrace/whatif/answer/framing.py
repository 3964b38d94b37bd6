# SPDX-License-Identifier: GPL-2.0-only
"""A packet as what is sent: frames that come in through a device, or packets of the host.

Must not send anything.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from ipttrace.checksums import checksum
from ipttrace.text import clean
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.repair import upper_layer
from ipttrace.whatif.packet.spec import TCP, Packet
from ipttrace.whatif.snapshot.model import Device

_STRANGER: Final = "02:00:00:00:00:fe"


def sends(copy: Copy, packet: Packet, data: bytes) -> list[dict[str, Any]]:
    """Returns what Copy.send sends for an IP packet.  Raises WhatIfError."""
    if packet.out:
        return [{"data": data.hex(), "mark": packet.mark}]
    device = copy.snapshot.device(packet.device)
    if device is None:
        names = ", ".join(one.name for one in copy.snapshot.devices if one.name != "lo")
        raise WhatIfError(f"there is no device {clean(packet.device, 20)}: {clean(names, 200)}")
    if not device.up:
        raise WhatIfError(f"{device.name} is down: nothing comes in there")
    through, tags = _entry(copy, device)
    if packet.vlan is not None:
        tags = [*tags, packet.vlan]
    target = packet.mac_dst or device.lladdr
    source = packet.mac_src or _neighbour(copy, packet.src or "") or _STRANGER
    kind = b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\x00"
    head = bytes.fromhex(target.replace(":", "") + source.replace(":", ""))
    head += b"".join(b"\x81\x00" + struct.pack("!H", tag) for tag in tags) + kind
    proto, _, complete = upper_layer(data)
    segment = proto == TCP and complete and not tags
    parts = [data] if segment or len(data) <= device.mtu else _fragments(data, device.mtu)
    return [
        {
            "device": through,
            "data": (head + one).hex(),
            "segment": segment,
            "tagged": bool(tags),
        }
        for one in parts
    ]


def _entry(copy: Copy, device: Device) -> tuple[str, list[int]]:
    """The device into whose outer end frames for `device` are sent, and their VLAN tags."""
    if device.name == "lo":
        raise WhatIfError("nothing comes in through lo from outside: use out")
    if device.name in copy.outer:
        return device.name, []
    below = copy.snapshot.device(device.link) if device.kind == "vlan" else None
    if below is not None:
        name, tags = _entry(copy, below)
        return name, [*tags, device.vlan or 0]
    if device.kind == "bridge":
        for port in copy.snapshot.devices:
            if port.master == device.name and port.up and port.name in copy.outer:
                return port.name, []
        raise WhatIfError(f"{device.name} has no port through which a packet could come in")
    raise WhatIfError(f"name the device of {device.name} through which it comes in")


def _neighbour(copy: Copy, address: str) -> str:
    return next((mac for one, _, mac in copy.snapshot.neighbours if one == address), "")


def _fragments(data: bytes, mtu: int) -> list[bytes]:
    """Fragments of a packet that was recorded after its reassembly, or is too large."""
    if data[0] >> 4 == 4:
        size = (data[0] & 15) * 4
        flags = struct.unpack_from("!H", data, 6)[0]
        if flags & 0x4000:
            raise WhatIfError(f"the packet has {len(data)} bytes, the device's MTU is {mtu}")
        return [
            _part4(data, size, at, mtu, flags) for at in range(size, len(data), _step(mtu, size))
        ]
    ident = b"\0\0\0\1"
    step = (mtu - 48) // 8 * 8
    body = data[40:]
    parts = []
    for at in range(0, len(body), step):
        some = body[at : at + step]
        more = at + step < len(body)
        inner = bytes([data[6], 0]) + struct.pack("!H", at | int(more)) + ident + some
        parts.append(data[:4] + struct.pack("!H", len(inner)) + b"\x2c" + data[7:40] + inner)
    return parts


def _step(mtu: int, head: int) -> int:
    return (mtu - head) // 8 * 8


def _part4(data: bytes, head: int, at: int, mtu: int, flags: int) -> bytes:
    step = _step(mtu, head)
    some = data[at : at + step]
    more = at + step < len(data) or flags & 0x2000
    offset = (flags & 0x1FFF) + (at - head) // 8
    first = bytearray(data[:head])
    first[2:4] = struct.pack("!H", head + len(some))
    first[6:8] = struct.pack("!H", offset | (0x2000 if more else 0))
    first[10:12] = bytes(2)
    first[10:12] = struct.pack("!H", checksum(bytes(first)))
    return bytes(first) + some
