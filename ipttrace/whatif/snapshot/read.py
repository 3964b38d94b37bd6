# SPDX-License-Identifier: GPL-2.0-only
"""What the calling thread's network namespace has: devices, routes, settings, rules.

Only reads: no table is created that does not exist.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any, Final

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.events import TABLE_PREFIX
from ipttrace.netfilter import TABLES
from ipttrace.text import clean
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot import nft
from ipttrace.whatif.snapshot.model import MOST_BYTES, Device, Ruleset, Snapshot, line_of_ip

_FOLDERS: Final = "/usr/sbin:/sbin"
# What ip(8) prints of a route's state, which it does not read again.
_STATE: Final = re.compile(
    r" (linkdown|dead|offload|rt_offload|trap|rt_trap|offload_failed|notify|pervasive|cache)\b"
    r"| (expires|error|nhid) -?\S+"
)
_SYSCTLS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_default_ttl",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/tcp_l3mdev_accept",
    "net/ipv4/udp_l3mdev_accept",
    "net/ipv4/raw_l3mdev_accept",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/fib_multipath_use_neigh",
    "net/ipv4/icmp_echo_ignore_all",
    "net/ipv4/icmp_echo_ignore_broadcasts",
    "net/ipv4/icmp_errors_use_inbound_ifaddr",
    "net/ipv6/bindv6only",
    "net/ipv6/fwmark_reflect",
    "net/ipv6/icmp/echo_ignore_all",
    "net/ipv6/fib_multipath_hash_policy",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
    "net/bridge/bridge-nf-filter-vlan-tagged",
    "net/bridge/bridge-nf-filter-pppoe-tagged",
    "net/bridge/bridge-nf-pass-vlan-input-dev",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst",
    "net/netfilter/nf_conntrack_checksum",
    "net/netfilter/nf_conntrack_acct",
    "net/netfilter/nf_conntrack_helper",
)
_PER_DEVICE: Final = {
    4: (
        "forwarding",
        "rp_filter",
        "accept_local",
        "accept_source_route",
        "route_localnet",
        "src_valid_mark",
        "bc_forwarding",
        "mc_forwarding",
    ),
    6: ("disable_ipv6", "forwarding", "accept_source_route"),
}
_IPSETS: Final = re.compile(r"^create ", re.MULTILINE)


def read(*, rules: bool = True) -> Snapshot:
    """Returns the namespace's snapshot; `rules`: with its rules, which needs root.

    Raises WhatIfError.
    """
    devices = _devices()
    versions = (4, 6) if os.path.exists("/proc/net/if_inet6") else (4,)
    rulesets, notes = _rulesets() if rules else ((), ())
    return Snapshot(
        host=clean(socket.gethostname(), 64),
        devices=devices,
        routes={version: _routes(version) for version in versions},
        rules={version: _rules(version) for version in versions},
        neighbours=_neighbours(),
        sysctls=_sysctls([one.name for one in devices]),
        rulesets=rulesets,
        notes=notes,
    )


def _program(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=_FOLDERS)
    if path is None:
        raise WhatIfError(f"{name} is missing (apt install {package})")
    return path


def _run(argv: list[str]) -> str:
    try:
        return iptables_save.run(argv).decode("utf-8", "surrogateescape")
    except (CaptureError, iptables_save.Unreadable) as error:
        raise WhatIfError(str(error)) from None
    except OSError as error:
        raise WhatIfError(f"cannot run {argv[0]}: {error.strerror}") from None


def _ip(*words: str) -> str:
    return _run([_program("ip", "iproute2"), "-N", *words])


def _ip_json(*words: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(_run([_program("ip", "iproute2"), "-j", *words]) or "[]")
    except ValueError:
        raise WhatIfError(f"ip {' '.join(words)} does not print JSON: update iproute2") from None
    return [one for one in found if one]


def _devices() -> tuple[Device, ...]:
    addresses: dict[str, list[str]] = {}
    for one in _ip_json("addr", "show"):
        addresses[one["ifname"]] = [
            f"{info['local']}/{info['prefixlen']}"
            for info in one.get("addr_info", ())
            if "local" in info
        ]
    links = _ip_json("-d", "link", "show")
    return tuple(_device(one, addresses.get(one["ifname"], [])) for one in links)


def _device(one: dict[str, Any], addresses: list[str]) -> Device:
    info = one.get("linkinfo", {})
    data = info.get("info_data", {})
    kind = str(info.get("info_kind", ""))
    ethernet = one.get("link_type") == "ether"
    group = str(one.get("group", "default"))
    return Device(
        name=one["ifname"],
        index=one["ifindex"],
        kind=kind,
        mac=str(one.get("address", "")) if ethernet else "",
        mtu=int(one.get("mtu", 1500)),
        up="UP" in one.get("flags", ()),
        group=int(group) if group.isdigit() else 0,
        master=str(one.get("master", "")),
        link=str(one.get("link", "")) if kind == "vlan" else "",
        vlan=data.get("id") if kind == "vlan" else None,
        table=data.get("table") if kind == "vrf" else None,
        addresses=tuple(addresses),
    )


def _routes(version: int) -> tuple[str, ...]:
    lines = _ip(f"-{version}", "-o", "route", "show", "table", "all").splitlines()
    found = (_STATE.sub("", re.sub(r"\\\s*", " ", line)).strip() for line in lines)
    kept = [line for line in found if line and not _made_by_addresses(line)]
    return tuple(line_of_ip(re.sub(r" {2,}", " ", line), "routes") for line in kept)


def _made_by_addresses(line: str) -> bool:
    """Whether the kernel makes the route of an address (RTPROT_KERNEL, local table)."""
    return " table 255" in line and " proto 2" in line


def _rules(version: int) -> tuple[str, ...]:
    lines = (line.split(":", 1) for line in _ip(f"-{version}", "rule", "show").splitlines())
    found = (f"pref {pref} {rest.strip()}" for pref, rest in lines)
    return tuple(
        line_of_ip(line.replace("lookup [l3mdev-table]", "l3mdev"), "rules") for line in found
    )


def _neighbours() -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (str(one["dst"]), str(one["dev"]), str(one["lladdr"]))
        for one in _ip_json("neigh", "show")
        if {"dst", "dev", "lladdr"} <= one.keys() and len(str(one["lladdr"])) == 17
    )


def _sysctls(devices: list[str]) -> dict[str, str]:
    paths = list(_SYSCTLS)
    for version, names in _PER_DEVICE.items():
        for device in ("all", "default", *devices):
            paths += [f"net/ipv{version}/conf/{device}/{name}" for name in names]
    found: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found[path] = Path("/proc/sys", path).read_text("ascii").strip()
    return found


def _rulesets() -> tuple[tuple[Ruleset, ...], tuple[str, ...]]:
    if os.geteuid() != 0:
        raise WhatIfError(
            "only root can read this host's rules: run with sudo, or give files (--rules)"
        )
    found: list[Ruleset] = []
    notes: list[str] = []
    if text := _ipsets(notes):
        found.append(Ruleset("ipset", text, "ipset"))
    for version, name in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        tables = iptables_save.names(version)
        if not tables:
            continue
        path = _program(f"{name}-save", "iptables")
        text = "".join(_run([path, "-t", table]) for table in tables)
        found.append(Ruleset(name, text, name))
    found += _nft()
    if sum(len(one.text) for one in found) > MOST_BYTES:
        raise WhatIfError(f"the rules are larger than {MOST_BYTES >> 20} MB")
    return tuple(found), tuple(notes)


def _ipsets(notes: list[str]) -> str:
    path = shutil.which("ipset") or shutil.which("ipset", path=_FOLDERS)
    if path is None:
        return ""
    try:
        text = _run([path, "save"])
    except WhatIfError as error:
        notes.append(f"ipset sets are not copied: {error}")
        return ""
    return text if _IPSETS.search(text) else ""


def _saved(program: str, table: str) -> str:
    """The table as iptables-nft prints it; "" if it is not one of iptables-nft.

    nft prints some rules of iptables-nft in its own words, without their targets.
    """
    try:
        text = _run([_program(f"{program}-save", "iptables"), "-t", table])
    except WhatIfError:
        return ""
    # "# Table `nat' is incompatible, use 'nft' tool."
    return text if f"\n*{table}\n" in f"\n{text}" and "is incompatible" not in text else ""


def _nft() -> list[Ruleset]:
    """Tables of nftables in their order; those of iptables-nft as iptables-nft-save prints them."""
    path = shutil.which("nft") or shutil.which("nft", path=_FOLDERS)
    if path is None:
        return []
    found: list[Ruleset] = []
    for family, name, text in nft.tables(_run([path, "list", "ruleset"])):
        if name.startswith(TABLE_PREFIX.decode()):
            continue
        program = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}.get(family, "")
        saved = _saved(program, name) if program and name in TABLES else ""
        if saved:
            found.append(Ruleset(program, saved, f"{program} table {name}"))
        elif found and found[-1].kind == "nft":
            found[-1] = Ruleset("nft", found[-1].text + nft.without_owner(text), "nft")
        else:
            found.append(Ruleset("nft", nft.without_owner(text), "nft"))
    return found
