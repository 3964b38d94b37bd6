# SPDX-License-Identifier: GPL-2.0-only
"""Devices, addresses, routes and settings of the copy, made with ip(8).

The calling process is in the copy; OUTSIDE names the namespace of the outer ends.  No device
sends anything by itself: ARP, multicast, neighbour and router discovery are off.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ipttrace.text import clean
from ipttrace.whatif.copy import commands
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot.model import Device, Snapshot

OUTSIDE: Final = "outside"
# Added to the number of a device for its outer end: equal numbers make a veth look like a card.
_OUTER: Final = 1 << 25
LARGEST: Final = 65535
_QUIET: Final = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/autoconf": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratemask": "",
}
_FAILED: Final = re.compile(r"^Command failed -:([0-9]+)$")


def quiet_outside() -> None:
    """Keeps the outer ends from sending anything; called outside, before there are any.

    Their names are free afterwards.  Raises WhatIfError.
    """
    _set({"net/ipv6/conf/default/disable_ipv6": "1", "net/ipv6/conf/all/disable_ipv6": "1"})
    _rename(_kernels_own())


def build(snapshot: Snapshot) -> tuple[list[str], list[str]]:
    """Makes the network.  Raises WhatIfError.

    Returns what could not be copied, a line each, and the names of devices with outer ends.
    """
    notes: list[str] = []
    devices = [one for one in snapshot.devices if one.name != "lo"]
    _set(_QUIET)
    devices = _beside_the_kernels(devices, notes)
    outer = _make_devices(devices, notes)
    batch("-n", OUTSIDE, lines=["link set group 0 up"])
    _set(snapshot.sysctls)
    _fill(snapshot, devices, notes)
    # Devices have settings of their own only once they exist; addresses change none.
    missing = _set(snapshot.sysctls)
    notes += [f"setting {name} cannot be made here" for name in missing if _matters(name)]
    return notes, outer


def _matters(name: str) -> bool:
    return name.startswith("net/bridge/") or name.endswith(("forward", "forwarding", "rp_filter"))


def batch(*options: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Runs lines for ``ip -batch``; returns those that failed, with the reasons."""
    if not lines:
        return []
    argv = ["ip", *options, "-force", "-batch", "-"]
    done = commands.run(argv, "".join(f"{line}\n" for line in lines))
    failed: list[tuple[str, str]] = []
    reason = ""
    for line in done.errors.splitlines():
        if found := _FAILED.match(line):
            at = int(found[1]) - 1
            failed.append((lines[at] if at < len(lines) else "", reason))
        elif line.strip():
            reason = clean(line.removeprefix("RTNETLINK answers: ").removeprefix("Error: "), 120)
    return failed


def _kernels_own() -> dict[str, int]:
    """The devices, with numbers, that the kernel makes in every namespace.

    Its modules for tunnels have one each (gre0, sit0), which cannot be removed.
    """
    return {name: index for index, name in socket.if_nameindex() if name != "lo"}


def _rename(devices: Mapping[str, int]) -> None:
    # Not in the group that is set up as a whole.
    _check(batch(lines=[f"link set {one} group 1 name kernels-{devices[one]}" for one in devices]))


def _beside_the_kernels(devices: list[Device], notes: list[str]) -> list[Device]:
    """Returns the devices to make: with names and numbers that are free."""
    there = _kernels_own()
    up = {one.name for one in devices if one.up}
    taken = set(there.values())
    free = max([*taken, *(one.index for one in devices)], default=0)
    _rename({name: there[name] for name in there if name in up})
    found = []
    for one in devices:
        if one.name in there and not one.up:
            continue
        if one.index in taken:
            free += 1
            notes.append(
                f"{one.name} has the number {free} instead of {one.index}, which a device has"
                " that the kernel makes"
            )
            one = replace(one, index=free, mac=one.lladdr)
        found.append(one)
    return found


def _make_devices(devices: list[Device], notes: list[str]) -> list[str]:
    special = [one for one in devices if one.kind in ("bridge", "vrf", "vlan")]
    plain = [one for one in devices if one not in special]
    _check(batch(lines=[_veth(one) for one in plain]))
    outer = [one.name for one in plain]
    made = set(outer)
    while special:
        ready = [one for one in special if one.kind != "vlan" or one.link in made]
        for one in ready or special:
            whole = bool(ready)
            failed = batch(lines=[_special(one)]) if whole else [("", "its device is missing")]
            if failed:
                notes.append(f"{one.name} ({one.kind}) is copied as a plain device: {failed[0][1]}")
                _check(batch(lines=[_veth(one)]))
                outer.append(one.name)
            made.add(one.name)
        special = [one for one in special if one.name not in made]
    return outer


def _check(failed: list[tuple[str, str]]) -> None:
    if failed:
        words = failed[0][0].split()
        name = words[words.index("name") + 1] if "name" in words else ""
        raise WhatIfError(f"cannot make the device {name}: {failed[0][1]}")


def _veth(one: Device) -> str:
    words = f"link add name {one.name} index {one.index} address {one.lladdr}"
    inner = f"{words} mtu {min(one.mtu, LARGEST)}"
    outer = f"name {one.name} index {one.index + _OUTER} mtu {LARGEST} netns {OUTSIDE}"
    return f"{inner} type veth peer {outer}"


def _special(one: Device) -> str:
    words = f"name {one.name} index {one.index} address {one.lladdr} "
    if one.kind == "vlan":
        return f"link add link {one.link} {words}type vlan id {one.vlan or 0}"
    if one.kind == "vrf":
        return f"link add {words}type vrf table {one.table or 1}"
    return f"link add {words}type bridge mcast_snooping 0"


def _fill(snapshot: Snapshot, devices: list[Device], notes: list[str]) -> None:
    names = {one.name for one in snapshot.devices}
    masters = {one.name for one in devices if one.kind in ("bridge", "vrf")}
    lines = ["link set lo up"]
    for one in devices:
        # With ARP off, a packet to an unknown neighbour leaves without waiting for an answer.
        lines.append(f"link set {one.name} arp off multicast off group {one.group}")
        if one.master in masters:
            lines.append(f"link set {one.name} master {one.master}")
    for one in snapshot.devices:
        for address in one.addresses:
            nodad = " nodad" if ":" in address else ""
            lines.append(f"addr replace {address} dev {one.name}{nodad}")
    lines += [f"link set {one.name} up" for one in devices if one.up]
    failed = batch(lines=lines)
    # Routes depend on each other: those without a gateway come first.
    for version in (4, 6):
        routes = sorted(snapshot.routes.get(version, ()), key=lambda line: " via " in line)
        failed += batch(f"-{version}", lines=[f"route add {line}" for line in routes])
        rules = snapshot.rules.get(version)
        if rules:
            failed += batch(f"-{version}", lines=[f"rule add {line}" for line in rules])
            there = {line.split()[1] for line in rules if line.startswith("pref ")}
            gone = [pref for pref in ("0", "32766", "32767") if pref not in there]
            batch(f"-{version}", lines=[f"rule del pref {pref}" for pref in gone])
    neighbours = [
        f"neigh replace {address} lladdr {mac} nud permanent dev {device}"
        for address, device, mac in snapshot.neighbours
        if device in names
    ]
    failed += batch(lines=neighbours)
    notes += [f"not copied: {line}: {reason}" for line, reason in failed if reason != "File exists"]


def _set(values: dict[str, str]) -> list[str]:
    """Sets sysctls; returns the names of those that could not be set."""
    failed = []
    # "all" sets those of all devices, which have their own values afterwards.
    for name, value in sorted(values.items(), key=lambda one: _order(one[0])):
        path = Path("/proc/sys", name)
        with contextlib.suppress(OSError, ValueError):
            if path.read_text("ascii").strip() == value.strip():
                continue
        try:
            path.write_text(value + "\n", "ascii")
        except (OSError, ValueError):
            failed.append(name)
    return failed


def _order(name: str) -> tuple[int, str]:
    parts = name.split("/")
    if parts[-1] in ("ip_forward",):
        return 0, name
    if "all" in parts:
        return 1, name
    return (2 if "default" in parts else 3), name


def set_mtu(values: dict[str, int]) -> None:
    """Sets the MTUs of devices."""
    batch(lines=[f"link set {name} mtu {min(mtu, LARGEST)}" for name, mtu in values.items()])


def source_for(destination: str, version: int) -> str:
    """Returns the address from which this host sends to `destination`.  Raises WhatIfError."""
    done = commands.run(["ip", f"-{version}", "-o", "route", "get", destination])
    found = re.search(r" src (\S+)", done.output)
    if done.status or not found:
        raise WhatIfError(f"no route to {destination}: {done.reason}")
    return found[1]


def device_to(destination: str, version: int) -> str:
    """Returns the device that leads to `destination`; "" if it is local or there is no route."""
    done = commands.run(["ip", f"-{version}", "-o", "route", "get", destination])
    words = done.output.split()
    if done.status or words[:1] == ["local"] or "dev" not in words:
        return ""
    return words[words.index("dev") + 1]
