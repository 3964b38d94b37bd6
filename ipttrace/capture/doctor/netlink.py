# SPDX-License-Identifier: GPL-2.0-only
"""What the netlink engine can trace on a machine, and what it lacks there.

Only looks at a `Host`, as the doctor does: what the kernel loads by itself once
it is asked for counts as there.
"""

from __future__ import annotations

from typing import Final

from ipttrace.capture.doctor.check import Check, install, sudo
from ipttrace.capture.doctor.machine import Host

_NAME: Final = "engine: netlink"
_BOOT: Final = "boot a kernel of the distribution, or ipttrace lab"
# A symbol that is there with the module, and the option that makes it.
_PARTS: Final = {
    "nf_tables": ("nft_register_expr", "CONFIG_NF_TABLES"),
    "nfnetlink_log": ("nfulnl_log_packet", "CONFIG_NETFILTER_NETLINK_LOG"),
}


def engine(host: Host) -> Check:
    """Can it run here, and what will it trace?"""
    why = _privileges(host) or _part(host, "nf_tables") or _log(host)
    if why is not None and why.status == "warn":
        return why
    if why is not None:
        return Check(_NAME, "fail", f"no, because {why.text}", why.remedy)
    what = "iptables-nft, nftables" + (" and legacy" if _traces_legacy(host) else "")
    only = " (in this user namespace's own networks only)" if host.in_user_namespace else ""
    return Check(_NAME, "ok", f"yes: {what}{only}")


def nftables(host: Host) -> Check:
    """Are there rules of nftables, and can their texts be asked for?"""
    if host.tool("nft"):
        return Check("nftables", "ok", "nft is there: rules have texts")
    if _part(host, "nf_tables") is not None:
        return Check("nftables", "ok", "not there")
    text = "nft is not installed: nftables' rules have no texts"
    return Check("nftables", "warn", text, install(host, "nftables"))


def _privileges(host: Host) -> Check | None:
    if "CAP_NET_ADMIN" not in host.capabilities:
        if host.root_user:
            text = "root, but without CAP_NET_ADMIN (a container)"
            return Check(_NAME, "fail", text, "give the container NET_ADMIN")
        text = "not root, and without CAP_NET_ADMIN"
        return Check(_NAME, "fail", text, "run it with sudo, or look at ipttrace demo")
    # The kernel gives the files of a network to root of the user namespace it belongs to.
    if host.in_user_namespace and host.owner("proc/sys/net/netfilter") not in (None, 0):
        text = "the network here is not this user namespace's"
        return Check(_NAME, "fail", text, "unshare -n, or look at ipttrace demo")
    return None


def _log(host: Host) -> Check | None:
    """In the first network each rule of a legacy table would be a line of the kernel's log."""
    first = host.link("proc/1/ns/net")
    tables = (host.read(f"proc/net/ip{six}_tables_names") for six in ("", "6"))
    if not first or first != host.link("proc/self/ns/net") or not any(tables):
        return None
    if (lacking := _part(host, "nfnetlink_log")) is None or lacking.status == "warn":
        return None
    text = f"there are legacy tables, and {lacking.text}: the kernel's log would be flooded"
    return Check(_NAME, "fail", text, lacking.remedy)


def _traces_legacy(host: Host) -> bool:
    """Do legacy tables tell of traced packets, and can that be read?"""
    config = host.config
    option = "CONFIG_NETFILTER_XT_TARGET_TRACE"
    told = config is None or config.get(option) in ("y", "m")
    return told and _part(host, "nfnetlink_log") is None


def _part(host: Host, module: str) -> Check | None:
    """Why this part of the kernel is not there; None when it is, or is loaded when needed."""
    symbol, option = _PARTS[module]
    if module in host.modules or symbol in (host.symbols or ()):
        return None
    config = host.config
    built = None if config is None else config.get(option, "n")
    if built == "y":
        return None
    loadable = host.exists("proc/modules")
    if built not in ("m", None) or (not loadable and host.symbols is not None):
        return Check(_NAME, "fail", f"kernel {host.release} has no {module} ({option})", _BOOT)
    if loadable and host.word("proc/sys/kernel/modules_disabled") == "1":
        text = f"{module} is not loaded, and loading is switched off (kernel.modules_disabled)"
        return Check(_NAME, "fail", text, "reboot without kernel.modules_disabled=1")
    if loadable and host.has_module(f"net/netfilter/{module}"):
        return None
    if loadable and built == "m" and host.exists(f"lib/modules/{host.release}"):
        text = f"{module} is not loaded, and is not in /lib/modules/{host.release}"
        return Check(_NAME, "fail", text, f"install all modules of {host.release}")
    text = f"not to be told whether the kernel has {module}"
    return Check(_NAME, "warn", text, sudo(host, f"modprobe {module}"))
