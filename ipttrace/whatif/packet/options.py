# SPDX-License-Identifier: GPL-2.0-only
"""The words behind a packet's addresses: where it comes in, what it has, its connection.

Must not do I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ipttrace.trace.query.error import for_message, suggestion
from ipttrace.whatif.errors import PacketError
from ipttrace.whatif.packet.spec import FLAGS, ICMP, ICMPV6, TCP, Ends, Packet

_ICMP: Final = {
    4: {
        "echo-request": (8, 0),
        "echo-reply": (0, 0),
        "net-unreachable": (3, 0),
        "host-unreachable": (3, 1),
        "port-unreachable": (3, 3),
        "fragmentation-needed": (3, 4),
        "admin-prohibited": (3, 13),
        "redirect": (5, 1),
        "time-exceeded": (11, 0),
        "timestamp-request": (13, 0),
    },
    6: {
        "echo-request": (128, 0),
        "echo-reply": (129, 0),
        "no-route": (1, 0),
        "admin-prohibited": (1, 1),
        "address-unreachable": (1, 3),
        "port-unreachable": (1, 4),
        "packet-too-big": (2, 0),
        "time-exceeded": (3, 0),
        "router-solicitation": (133, 0),
        "router-advertisement": (134, 0),
        "neighbour-solicitation": (135, 0),
        "neighbour-advertisement": (136, 0),
    },
}
_STATES: Final = ("new", "established", "related")
_MAC: Final = re.compile("([0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)
_DEVICE: Final = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,15}")


class Tokens:
    """The words of a text, with their positions."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._found = [(found[0], found.start()) for found in re.finditer(r"\S+", text)]
        self.at = 0

    def __len__(self) -> int:
        return len(self._found)

    @property
    def end(self) -> bool:
        """Whether all words were taken."""
        return self.at >= len(self._found)

    def peek(self) -> str:
        """Returns the next word."""
        return self._found[self.at][0]

    def take(self, what: str) -> str:
        """Returns the next word and passes it.  Raises PacketError if there is none."""
        if self.end:
            raise self.error(f"{what} is missing", self.at)
        self.at += 1
        return self._found[self.at - 1][0]

    def expect(self, word: str) -> None:
        """Passes `word`.  Raises PacketError if another word is next."""
        at = self.at
        if self.take(f'"{word}"').lower() != word:
            raise self.error(f'"{word}" belongs here', at)

    def error(self, message: str, at: int) -> PacketError:
        """Returns an error about word `at`, or about the end of the text."""
        if at < len(self._found):
            word, start = self._found[at]
            return PacketError(message, start, len(word), self.text)
        return PacketError(message, len(self.text), 1, self.text)


EndsReader = Callable[[Tokens], Ends]
"""Reads ``A > B``."""


def number(tokens: Tokens, what: str, least: int, most: int) -> int:
    """Returns the next word as a number, also in hexadecimal digits.  Raises PacketError."""
    at = tokens.at
    word = tokens.take(what)
    if re.fullmatch("0x[0-9A-Fa-f]{1,16}|[0-9]{1,19}", word):
        value = int(word, 16 if word.startswith("0x") else 10)
        if least <= value <= most:
            return value
    bounds = f"from {least} on" if most >= 1 << 32 else f"{least} to {most}"
    raise tokens.error(f"{what}, {bounds}, belongs here", at)


def read(tokens: Tokens, packet: Packet, ends: EndsReader | None) -> Packet:
    """Returns `packet` with all words that are left.  Raises PacketError.

    `ends` reads the addresses behind ``reply of``; None: the packet's bytes are known, so that
    words about headers have no place.
    """
    flags: int | None = None
    while not tokens.end:
        at = tokens.at
        word = tokens.take("a word").lower()
        parts = word.split(",")
        if ends is not None and all(part in FLAGS or part == "none" for part in parts):
            if packet.proto != TCP:
                raise tokens.error(f'"{word}" belongs to tcp', at)
            flags = (flags or 0) | sum({FLAGS.get(part, 0) for part in parts})
            continue
        reader = _PLACES.get(word) or (_HEADERS.get(word) if ends is not None else None)
        if reader is not None:
            packet = reader(tokens, packet)
        elif word in _STATES:
            packet = replace(packet, state=word)
        elif word == "reply":
            packet = replace(packet, is_reply=True, state="established")
            if ends is not None and not tokens.end and tokens.peek().lower() == "of":
                tokens.take("of")
                packet = replace(packet, original=ends(tokens))
        elif ends is not None and word in (names := _ICMP[packet.family]):
            if packet.proto not in (ICMP, ICMPV6):
                raise tokens.error(f'"{word}" belongs to icmp', at)
            packet = replace(packet, icmp=names[word])
        else:
            raise _unknown(tokens, packet, at, whole=ends is not None)
    if flags is None:
        flags = FLAGS["syn"] if packet.state == "new" else FLAGS["ack"]
    return replace(packet, flags=flags)


def _unknown(tokens: Tokens, packet: Packet, at: int, *, whole: bool) -> PacketError:
    word = tokens.text[tokens.error("", at).position :].split()[0]
    known = [*_PLACES, *_STATES, "reply"]
    if whole:
        known += [*_HEADERS, *FLAGS, *_ICMP[packet.family]]
    elif word.lower() in _HEADERS:
        return tokens.error(f'"{for_message(word)}": these bytes are sent as they are', at)
    return tokens.error(f'unknown word "{for_message(word)}"{suggestion(word, known)}', at)


def _device(tokens: Tokens) -> str:
    at = tokens.at
    name = tokens.take("a device")
    if not _DEVICE.fullmatch(name):
        raise tokens.error(f'"{for_message(name)}" is not a device', at)
    return name


def _in(tokens: Tokens, packet: Packet) -> Packet:
    if packet.out:
        raise tokens.error("it either comes in or goes out", tokens.at - 1)
    return replace(packet, device=_device(tokens))


def _out(tokens: Tokens, packet: Packet) -> Packet:
    if packet.device:
        raise tokens.error("it either comes in or goes out", tokens.at - 1)
    return replace(packet, out=True)


def _mac(name: str) -> Callable[[Tokens, Packet], Packet]:
    def read_one(tokens: Tokens, packet: Packet) -> Packet:
        at = tokens.at
        word = tokens.take("a link-layer address")
        if not _MAC.fullmatch(word):
            raise tokens.error(f'"{for_message(word)}" is not a link-layer address', at)
        return replace(packet, **{name: word.lower()})  # type: ignore[arg-type]

    return read_one


def _numbered(field: str, what: str, least: int, most: int) -> Callable[[Tokens, Packet], Packet]:
    def read_one(tokens: Tokens, packet: Packet) -> Packet:
        value = number(tokens, what, least, most)
        return replace(packet, **{field: value})  # type: ignore[arg-type]

    return read_one


def _mark(tokens: Tokens, packet: Packet) -> Packet:
    at = tokens.at - 1
    packet = replace(packet, mark=number(tokens, "a mark", 0, (1 << 32) - 1))
    if packet.device:
        raise tokens.error("a packet comes in without a mark; only one that goes out has one", at)
    return packet


def _payload(tokens: Tokens, packet: Packet) -> Packet:
    word = tokens.take("a payload, as text or 0x…")
    if re.fullmatch("0x([0-9A-Fa-f]{2})+", word):
        return replace(packet, payload=bytes.fromhex(word[2:]))
    return replace(packet, payload=word.encode("utf-8", "surrogateescape"))


def _fragment(tokens: Tokens, packet: Packet) -> Packet:
    at = tokens.at
    word = tokens.take("a fragment's offset")
    found = re.fullmatch(r"([0-9]{1,5})(\+?)", word)
    if not found or int(found[1]) % 8 or int(found[1]) > 65528:
        raise tokens.error(
            "an offset in bytes, a multiple of 8, belongs here; + if more follow", at
        )
    return replace(packet, fragment=(int(found[1]), bool(found[2])))


def _icmp_type(tokens: Tokens, packet: Packet) -> Packet:
    at = tokens.at - 1
    if packet.proto not in (ICMP, ICMPV6):
        raise tokens.error('"type" belongs to icmp', at)
    kind = number(tokens, "an ICMP type", 0, 255)
    code = 0
    if not tokens.end and tokens.peek().lower() == "code":
        tokens.take("code")
        code = number(tokens, "an ICMP code", 0, 255)
    return replace(packet, icmp=(kind, code))


def _df(_tokens: Tokens, packet: Packet) -> Packet:
    return replace(packet, no_fragment=True)


_PLACES: Final = {
    "in": _in,
    "out": _out,
    "from-mac": _mac("mac_src"),
    "mac": _mac("mac_src"),
    "to-mac": _mac("mac_dst"),
    "vlan": _numbered("vlan", "a VLAN's number", 0, 4095),
    "mark": _mark,
    "ctmark": _numbered("ct_mark", "a mark", 0, (1 << 32) - 1),
    "ctzone": _numbered("ct_zone", "a zone", 0, 65535),
}
_HEADERS: Final = {
    "ttl": _numbered("ttl", "a TTL", 0, 255),
    "tos": _numbered("tos", "a TOS byte", 0, 255),
    "id": _numbered("ident", "an identification", 0, 65535),
    "len": _numbered("length", "a length in bytes", 20, 65535),
    "payload": _payload,
    "fragment": _fragment,
    "df": _df,
    "type": _icmp_type,
}
