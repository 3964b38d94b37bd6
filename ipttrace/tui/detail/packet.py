# SPDX-License-Identifier: GPL-2.0-only
"""The packet in the detail: its headers field by field, and its bytes.

Pure: must not import Textual or know colours.
"""

from __future__ import annotations

from typing import Final

from ipttrace.trace.decode.dissect import dissect, hex_dump
from ipttrace.trace.story import Packet
from ipttrace.tui.cells import Cells, cut
from ipttrace.tui.detail.wrap import Line, named, section, wrap

_WIDE_DUMP: Final = 140  # cells; from this width on, 32 bytes per line


def packet_lines(packet: Packet, width: int) -> list[Line]:
    """The headers, at most `width` cells long."""
    made: list[Line] = [Line(section("Packet"))]
    length = len(packet.data) if packet.length is None else packet.length
    layers = dissect(packet.data, length, packet.mac, packet.ethertype, packet.vlan)
    for layer in layers:
        indent = 2 + 2 * layer.depth
        items: list[Cells] = [[(" " * indent, "dim"), (layer.name, "section")]]
        items += [named(name, value) for name, value in layer.fields]
        if layer.note:
            items.append([("! " + layer.note, "bad")])
        made += wrap(items, width, indent + 2)
    return made


def byte_lines(packet: Packet, width: int, folded: bool, key: str) -> list[Line]:
    """The bytes, or only their number if `folded`; `key` unfolds them."""
    here, length = len(packet.data), packet.length
    of = "" if length is None else f" of {length}"
    held = f"{here}{of} from the network header"
    does = f"{key} {'shows' if folded else 'folds'} them"
    made = [Line(cut(section("Bytes", held, does), width))]
    if folded:
        return made
    per_line = 32 if width >= _WIDE_DUMP else 16 if width >= 75 else 8 if width >= 42 else 4
    room = 3 * per_line - 1 + max(per_line // 8 - 1, 0)
    for offset, octets, text in hex_dump(packet.data, per_line):
        line = [(f"  {offset}  ", "dim"), (f"{octets:<{room}}", "hex"), (f"  {text}", "text")]
        made.append(Line(cut(line, width)))
    return made
