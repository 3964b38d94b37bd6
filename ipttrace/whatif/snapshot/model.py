# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot: devices, addresses, routes, settings and rules; to JSON and back.

A snapshot from a file is untrusted: it is checked and bounded here, so that each text in it is
one line that can be given to ip(8).  Must not do I/O.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ipttrace.text import clean
from ipttrace.whatif.errors import WhatIfError

FORMAT: Final = "ipttrace snapshot"
VERSION: Final = 1
MOST_BYTES: Final = 64 << 20  # of a file, and of all rules
_MOST: Final = {"devices": 4096, "lines": 1 << 18, "sysctls": 1 << 16, "rulesets": 256}

KINDS: Final = (
    "ipset",
    "iptables-legacy",
    "ip6tables-legacy",
    "iptables-nft",
    "ip6tables-nft",
    "nft",
)
"""The programs' formats, in the order in which they are loaded."""

_NAME: Final = re.compile(r"(?!\.\.?$)[^\s/:\x00-\x20\x7f-\uffff]{1,15}")
_LINE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ./:,_@+%*()\[\]=-]{0,2047}")
_MAC: Final = re.compile("([0-9a-f]{2}:){5}[0-9a-f]{2}")
_SYSCTL: Final = re.compile(
    r"net/(ipv4|ipv6|bridge|netfilter)(/(?!\.\.?(/|$))[^\s/\x00-\x20\x7f-\uffff]{1,64}){1,4}"
)
_VALUE: Final = re.compile(r"[0-9A-Za-z \t,.-]{0,200}")


@dataclass(frozen=True, slots=True)
class Device:
    """A device.  `link`: the name of the device below a VLAN; `table`: of a VRF."""

    name: str
    index: int
    kind: str = ""  # veth, vlan, bridge, vrf, …; "": a card
    mac: str = ""
    mtu: int = 1500
    up: bool = True
    group: int = 0
    master: str = ""
    link: str = ""
    vlan: int | None = None
    table: int | None = None
    addresses: tuple[str, ...] = ()  # with prefix length

    @property
    def lladdr(self) -> str:
        """Its link-layer address in the copy, also if it has none of Ethernet."""
        if self.mac and not int(self.mac[:2], 16) & 1 and self.mac != "00:00:00:00:00:00":
            return self.mac
        number = f"{self.index & 0xFFFFFF:06x}"
        return f"02:fe:00:{number[:2]}:{number[2:4]}:{number[4:]}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Rules as a program prints them: `kind` is one of KINDS; `source` names them in messages."""

    kind: str
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A network and its rules.

    `routes` and `rules` are lines as ip(8) prints them, by IP version; `neighbours` have address,
    device and link-layer address.  `sysctls`: path below /proc/sys → value.
    """

    host: str = ""
    devices: tuple[Device, ...] = ()
    routes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    rules: dict[int, tuple[str, ...]] = field(default_factory=dict)
    neighbours: tuple[tuple[str, str, str], ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    rulesets: tuple[Ruleset, ...] = ()
    notes: tuple[str, ...] = ()

    def device(self, name: str) -> Device | None:
        """Returns the device `name`."""
        return next((one for one in self.devices if one.name == name), None)

    def to_json(self) -> str:
        """Returns the text of a file that `from_json` reads."""
        value = {
            "format": FORMAT,
            "version": VERSION,
            "host": self.host,
            "devices": [_without_defaults(one) for one in self.devices],
            "routes": {f"ipv{version}": list(lines) for version, lines in self.routes.items()},
            "rules": {f"ipv{version}": list(lines) for version, lines in self.rules.items()},
            "neighbours": [
                {"address": address, "device": device, "mac": mac}
                for address, device, mac in self.neighbours
            ],
            "sysctls": self.sysctls,
            "firewall": [asdict(one) for one in self.rulesets],
            "notes": list(self.notes),
        }
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str, source: str) -> Snapshot:
    """Returns the snapshot in the text of a file.  Raises WhatIfError, one line, with `source`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise WhatIfError(f"{source}: not JSON: {clean(reason, 120)}") from None
    try:
        return _snapshot(_dict(value, "the file"))
    except WhatIfError as error:
        raise WhatIfError(f"{source}: {error}") from None


def _snapshot(value: dict[str, Any]) -> Snapshot:
    if value.get("format") != FORMAT:
        raise WhatIfError(f'"format" is not "{FORMAT}": write the file with ipttrace snapshot')
    if value.get("version") != VERSION:
        raise WhatIfError("made by another version of ipttrace")
    devices = tuple(_device(one) for one in _list(value, "devices", "devices"))
    for attribute in ("name", "index"):
        seen = [getattr(one, attribute) for one in devices]
        if len(set(seen)) != len(seen):
            raise WhatIfError(f"two devices have the same {attribute}")
    sysctls = _dict(value.get("sysctls", {}), "sysctls")
    if len(sysctls) > _MOST["sysctls"]:
        raise WhatIfError("too many sysctls")
    return Snapshot(
        host=clean(str(value.get("host", "")), 64),
        devices=devices,
        routes=_lines(value, "routes"),
        rules=_lines(value, "rules"),
        neighbours=tuple(_neighbour(one) for one in _list(value, "neighbours", "lines")),
        sysctls={_sysctl(name): _setting(name, one) for name, one in sysctls.items()},
        rulesets=tuple(_ruleset(one) for one in _list(value, "firewall", "rulesets")),
        notes=tuple(clean(str(one), 200) for one in _list(value, "notes", "lines")[:20]),
    )


def _device(value: object) -> Device:
    one = _dict(value, "a device")
    name = one.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WhatIfError(f"not a device's name: {clean(str(name), 40)!r}")
    addresses = one.get("addresses", [])
    if not isinstance(addresses, list | tuple) or len(addresses) > 4096:
        raise WhatIfError(f"{name}: addresses is not a list")
    return Device(
        name=name,
        index=_number(one, "index", 1, 1 << 24, name),
        kind=_word(one, "kind", name),
        mac=_mac(one.get("mac", ""), name),
        mtu=_number(one, "mtu", 68, 1 << 24, name, 1500),
        up=one.get("up", True) is True,
        group=_number(one, "group", 0, (1 << 32) - 1, name, 0),
        master=_device_name(one, "master", name),
        link=_device_name(one, "link", name),
        vlan=None if one.get("vlan") is None else _number(one, "vlan", 0, 4094, name),
        table=None if one.get("table") is None else _number(one, "table", 1, (1 << 32) - 1, name),
        addresses=tuple(_address(text, name) for text in addresses),
    )


def _device_name(one: dict[str, Any], key: str, name: str) -> str:
    value = one.get(key, "")
    if not isinstance(value, str) or (value and not _NAME.fullmatch(value)):
        raise WhatIfError(f"{name}: {key} is not a device's name")
    return value


def _word(one: dict[str, Any], key: str, name: str) -> str:
    value = one.get(key, "")
    if not isinstance(value, str) or not re.fullmatch("[a-z0-9_-]{0,31}", value):
        raise WhatIfError(f"{name}: {key} is not a word")
    return value


def _mac(value: object, name: str) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        raise WhatIfError(f"{name}: not a link-layer address: {clean(str(value), 40)!r}")
    return value.lower()


def _address(value: object, name: str) -> str:
    try:
        return str(ipaddress.ip_interface(str(value)))
    except ValueError:
        raise WhatIfError(f"{name}: not an address: {clean(str(value), 60)!r}") from None


def _neighbour(value: object) -> tuple[str, str, str]:
    one = _dict(value, "a neighbour")
    address, device, mac = one.get("address"), one.get("device"), one.get("mac")
    try:
        text = str(ipaddress.ip_address(address))  # type: ignore[arg-type]
    except ValueError:
        raise WhatIfError(f"not a neighbour's address: {clean(str(address), 60)!r}") from None
    if not isinstance(device, str) or not _NAME.fullmatch(device) or not mac:
        raise WhatIfError(f"neighbour {text}: device or mac is missing")
    return text, device, _mac(mac, text)


def _lines(value: dict[str, Any], key: str) -> dict[int, tuple[str, ...]]:
    found = _dict(value.get(key, {}), key)
    lines: dict[int, tuple[str, ...]] = {}
    for version in (4, 6):
        some = _list(found, f"ipv{version}", "lines")
        lines[version] = tuple(line_of_ip(one, key) for one in some)
    return lines


def line_of_ip(value: object, what: str) -> str:
    """Returns one line for ip(8), checked.  Raises WhatIfError."""
    if not isinstance(value, str) or not _LINE.fullmatch(value):
        raise WhatIfError(f"{what}: not a line as ip(8) prints it: {clean(str(value), 60)!r}")
    return value


def _sysctl(name: str) -> str:
    path = name if "/" in name else name.replace(".", "/")
    if not _SYSCTL.fullmatch(path):
        raise WhatIfError(f"not a setting of a network namespace: {clean(name, 60)!r}")
    return path


def _setting(name: str, value: object) -> str:
    text = str(value)
    if not _VALUE.fullmatch(text):
        raise WhatIfError(f"not a value for {clean(name, 60)}: {clean(text, 40)!r}")
    return text


def _ruleset(value: object) -> Ruleset:
    one = _dict(value, "rules")
    kind, text = one.get("kind"), one.get("text")
    if kind not in KINDS or not isinstance(text, str):
        raise WhatIfError(f"firewall: unknown kind {clean(str(kind), 40)!r}")
    return Ruleset(str(kind), text, clean(str(one.get("source", kind)), 80))


def _number(
    one: dict[str, Any], key: str, least: int, most: int, name: str, default: int | None = None
) -> int:
    value = one.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WhatIfError(f"{name}: {key} is not a number from {least} to {most}")
    return value


def _dict(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WhatIfError(f"{what} is not an object")
    return value


def _list(value: dict[str, Any], key: str, bound: str) -> list[Any]:
    found = value.get(key, [])
    if not isinstance(found, list):
        raise WhatIfError(f'"{key}" is not a list')
    if len(found) > _MOST[bound]:
        raise WhatIfError(f'"{key}" is longer than {_MOST[bound]}')
    return found


def _without_defaults(device: Device) -> dict[str, Any]:
    plain = asdict(Device(device.name, device.index))
    found: Iterable[tuple[str, Any]] = asdict(device).items()
    return {key: one for key, one in found if key in ("name", "index") or one != plain[key]}
