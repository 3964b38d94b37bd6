# SPDX-License-Identifier: GPL-2.0-only
"""What the netlink engine can trace on a machine, and what it lacks there.

A module that the kernel loads by itself once it is used counts as available.  Must not
read anything except the `Host`.
"""

from __future__ import annotations

from typing import Final

from ipttrace.capture.doctor.check import BOOT, ENABLE_MODULES, Check, install, sudo
from ipttrace.capture.doctor.machine import Host

_NAME: Final = "engine: netlink"
_OR_DEMO: Final = "run it {}, or try the demo: ipttrace demo"
# A symbol of each module, and the option that builds it.
_PARTS: Final = {
    "nf_tables": ("nft_register_expr", "CONFIG_NF_TABLES"),
    "nfnetlink_log": ("nfulnl_log_packet", "CONFIG_NETFILTER_NETLINK_LOG"),
}


def engine(host: Host) -> Check:
    """Whether the netlink engine can run, and what it would trace."""
    why = _privileges(host) or _lacking(host, "nf_tables") or _log(host)
    if why is not None and why.status == "warn":
        return why
    if why is not None:
        return Check(_NAME, "fail", f"no, because {why.text}", why.remedy)
    what = "iptables-nft, nftables" + (" and legacy" if _traces_legacy(host) else "")
    only = " (in network namespaces of this user namespace only)" if host.in_user_namespace else ""
    return Check(_NAME, "ok", f"yes: {what}{only}")


def nftables(host: Host) -> Check:
    """Whether the texts of nftables' rules can be read."""
    if host.tool("nft"):
        return Check("nftables", "ok", "nft is installed: rules have texts")
    if _lacking(host, "nf_tables") is not None:
        return Check("nftables", "ok", "not in use: the kernel has no nf_tables")
    text = "nft is not installed: nftables' rules have no texts"
    return Check("nftables", "warn", text, install(host, "nftables"))


def _privileges(host: Host) -> Check | None:
    if "CAP_NET_ADMIN" not in host.capabilities:
        if host.root_user:
            text = "root, but without CAP_NET_ADMIN (in a container?)"
            return Check(_NAME, "fail", text, "start the container with --cap-add NET_ADMIN")
        text = "not root, and without CAP_NET_ADMIN"
        return Check(_NAME, "fail", text, _OR_DEMO.format("with sudo"))
    # These files belong to root of the user namespace that owns the network namespace.
    if host.in_user_namespace and host.owner("proc/sys/net/netfilter") not in (None, 0):
        text = "this network namespace belongs to another user namespace"
        return Check(_NAME, "fail", text, _OR_DEMO.format("under unshare -n"))
    return None


def _log(host: Host) -> Check | None:
    """Why tracing would flood the kernel's log: in the first network namespace only.

    There the kernel logs each rule hit of a traced packet in a legacy table, unless
    nfnetlink_log takes it.
    """
    first = host.link("proc/1/ns/net")
    tables = (host.read(f"proc/net/ip{six}_tables_names") for six in ("", "6"))
    if not first or first != host.link("proc/self/ns/net") or not any(tables):
        return None
    if (lacking := _lacking(host, "nfnetlink_log")) is None or lacking.status == "warn":
        return None
    text = f"legacy tables are in use, and {lacking.text}: the kernel's log would be flooded"
    return Check(_NAME, "fail", text, lacking.remedy)


def _traces_legacy(host: Host) -> bool:
    """Whether legacy tables report rule hits, and the reports can be read."""
    config = host.config
    option = "CONFIG_NETFILTER_XT_TARGET_TRACE"
    reported = config is None or config.get(option) in ("y", "m")
    return reported and _lacking(host, "nfnetlink_log") is None


def _lacking(host: Host, module: str) -> Check | None:
    """Why a module of the kernel is not available; None if it is, or is loaded when used."""
    symbol, option = _PARTS[module]
    if module in host.modules or symbol in (host.symbols or ()):
        return None
    config = host.config
    built = None if config is None else config.get(option, "n")
    if built == "y":
        return None
    loadable = host.exists("proc/modules")
    if built not in ("m", None) or (not loadable and host.symbols is not None):
        return Check(
            _NAME, "fail", f"kernel {host.release} has no {module} ({option} is off)", BOOT
        )
    if loadable and host.word("proc/sys/kernel/modules_disabled") == "1":
        text = f"{module} is not loaded, and loading is disabled (kernel.modules_disabled)"
        return Check(_NAME, "fail", text, ENABLE_MODULES)
    if loadable and host.has_module(f"net/netfilter/{module}"):
        return None
    if loadable and built == "m" and host.exists(f"lib/modules/{host.release}"):
        text = f"{module} is not loaded, and /lib/modules/{host.release} does not contain it"
        return Check(_NAME, "fail", text, install(host, f"--reinstall linux-image-{host.release}"))
    text = f"unknown whether the kernel has {module}"
    return Check(_NAME, "warn", text, sudo(host, f"modprobe {module}"))
