# SPDX-License-Identifier: GPL-2.0-only
"""What neither engine needs, but a user may miss: filters, the demo, a clean host.

Must not read anything except the `Host`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Final

from ipttrace.capture.doctor.check import Check, install, sudo
from ipttrace.capture.doctor.machine import MODULE, PINS, Host
from ipttrace.capture.doctor.netlink import nftables


def _libpcap(host: Host) -> Check:
    if host.library("libpcap.so.0.8") or host.library("libpcap.so.1"):
        return Check("libpcap", "ok", "filter expressions can be compiled")
    text = "libpcap is missing: filter expressions cannot be compiled"
    return Check("libpcap", "warn", text, install(host, "libpcap0.8"))


def _rules(host: Host) -> Check:
    """Which kind of rules this network namespace has, or would have: each engine traces its own."""
    tables = [
        f"{family}: {' '.join(sorted(names.split()))}"
        for family, path in (
            ("IPv4", "proc/net/ip_tables_names"),
            ("IPv6", "proc/net/ip6_tables_names"),
        )
        if (names := host.read(path)) and names.strip()
    ]
    if tables:
        return Check("rules", "ok", f"legacy tables are in use here ({', '.join(tables)})")
    links = [host.link(path) for path in ("etc/alternatives/iptables", "usr/sbin/iptables")]
    if any("nft" in link for link in links):
        text = "no legacy tables here: iptables is iptables-nft, which is traced over netlink"
        return Check("rules", "ok", text)
    if not host.tool("iptables") and not host.tool("iptables-legacy"):
        return Check("rules", "warn", "iptables is not installed", install(host, "iptables"))
    text = "no legacy tables here, or their list cannot be read"
    return Check("rules", "warn", text, sudo(host, "iptables-legacy-save"))


def _leftovers(host: Host) -> Check:
    left = []
    if host.exists(PINS):
        if (pid := host.pins_holder) is not None:
            return Check("leftovers", "ok", f"none: ipttrace is running (pid {pid})")
        left.append((f"pins under /{PINS}", f"rm -r /{PINS}"))
    if MODULE in host.modules and host.word(f"sys/module/{MODULE}/refcnt") in (None, "0"):
        left.append((f"module {MODULE}", f"rmmod {MODULE}"))
    if not left:
        return Check("leftovers", "ok", "none")
    what = ", ".join(name for name, _ in left)
    text = f"left by a run that was killed, removed at the next start: {what}"
    command = " && ".join(sudo(host, command) for _, command in reversed(left))
    return Check("leftovers", "warn", text, command)


def _breakpoints(host: Host) -> Check:
    folders = (f"usr/lib/{platform.machine()}-linux-gnu", "usr/lib64", "usr/lib")
    if not any(host.exists(f"{one}/xtables/libxt_IPTTRACE.so") for one in folders):
        command = sudo(host, "make install-xtables")
        return Check("breakpoints", "ok", f"iptables has no -j IPTTRACE: {command} adds it")
    if MODULE in host.modules:
        return Check("breakpoints", "ok", "rules may have -j IPTTRACE")
    built = host.built_module
    command = sudo(host, "make dkms" if built is None else f"insmod {built}")
    text = f"rules may have -j IPTTRACE once the module is loaded: {command}"
    return Check("breakpoints", "ok", text)


def _user_namespaces(host: Host) -> Check:
    for path, off, command in (
        ("sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        if host.word(f"proc/{path}") == off:
            text = "disabled for ordinary users: ipttrace demo needs root"
            return Check("user namespaces", "warn", text, sudo(host, f"sysctl -w {command}"))
    if not host.exists("proc/self/ns/user"):
        text = "this kernel has none (CONFIG_USER_NS is off): ipttrace demo needs root"
        return Check("user namespaces", "warn", text)
    return Check("user namespaces", "ok", "can be created")


CHECKS: Final[tuple[Callable[[Host], Check], ...]] = (
    _libpcap,
    _rules,
    nftables,
    _leftovers,
    _breakpoints,
    _user_namespaces,
)
