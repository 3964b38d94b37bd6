# SPDX-License-Identifier: GPL-2.0-only
"""What this machine can trace with, what it lacks, and the command that mends it.

Each check looks at a `Host` and gives one line.  It only looks: nothing is
loaded, mounted, installed or sent.  The agent asks `why_not` before it starts,
so that a person reads the reason and not an errno.  Must not import bcc.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from ipttrace.capture.doctor import netlink as doctor_netlink
from ipttrace.capture.doctor.check import Check, install, sudo
from ipttrace.capture.doctor.machine import MODULE, PINS, Host

OLDEST: Final = (5, 10)
_SIGNED: Final = b"~Module signature appended~\n"  # MODULE_SIG_STRING of linux/module_signature.h
_COLOURS: Final = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m"}


def _kernel(host: Host) -> Check:
    if host.version is not None and host.version < OLDEST:
        text = f"{host.release} is too old: 5.10 is the oldest that can be traced"
        return Check("kernel", "fail", text, "boot a newer kernel")
    return Check("kernel", "ok", host.release)


def _inserted(host: Host) -> bool:
    """Is our module loaded, and no dead run's, which would be replaced?"""
    return MODULE in host.modules and not host.exists(PINS)


def _modules(host: Host) -> Check:
    if not host.exists("proc/modules"):
        text = f"kernel {host.release} cannot load modules (CONFIG_MODULES is off)"
        return Check("modules", "fail", text, "boot a kernel of the distribution, or ipttrace lab")
    if host.word("proc/sys/kernel/modules_disabled") == "1" and not _inserted(host):
        text = "loading of modules is switched off until the next boot (kernel.modules_disabled)"
        return Check("modules", "fail", text, "reboot without kernel.modules_disabled=1")
    return Check("modules", "ok", "can be loaded")


def _kprobes(host: Host) -> Check:
    lacking = Check(
        "kprobes",
        "fail",
        f"kernel {host.release} has no kretprobes (CONFIG_KRETPROBES)",
        "boot a kernel of the distribution, or ipttrace lab",
    )
    if host.word("sys/kernel/debug/kprobes/enabled") == "0":
        command = "sh -c 'echo 1 > /sys/kernel/debug/kprobes/enabled'"
        return Check("kprobes", "fail", "kprobes are switched off", sudo(host, command))
    if host.symbols is not None:
        found = "register_kretprobe" in host.symbols
    elif host.config is not None:
        found = host.config.get("CONFIG_KRETPROBES") == "y"
    else:
        return Check(
            "kprobes", "warn", "not to be told: the kernel hides symbols and configuration"
        )
    return Check("kprobes", "ok", "kretprobes are there") if found else lacking


def _trace(host: Host) -> Check:
    missing = ""
    if host.symbols is not None and "nf_log_trace" not in host.symbols:
        missing = "nf_log_trace, CONFIG_NETFILTER"
    config = host.config
    if config is not None and config.get("CONFIG_NETFILTER_XT_TARGET_TRACE") not in ("y", "m"):
        missing = missing or "CONFIG_NETFILTER_XT_TARGET_TRACE"
    if missing:
        text = f"kernel {host.release} cannot trace rules ({missing})"
        return Check("rule trace", "fail", text, "boot a kernel that has it")
    return Check("rule trace", "ok", "the kernel reports the rules it passes")


def _btf(host: Host) -> Check:
    if host.exists("sys/kernel/btf/vmlinux"):
        return Check("BTF", "ok", "/sys/kernel/btf/vmlinux")
    text = f"kernel {host.release} has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)"
    return Check("BTF", "fail", text, "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")


def _privileges(host: Host) -> Check:
    if host.in_user_namespace:
        text = "root only inside a user namespace (a rootless container): not enough for modules"
        return Check("privileges", "fail", text, "run it on the host, with sudo")
    has = host.capabilities
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_SYS_MODULE") if name not in has]
    if "CAP_SYS_ADMIN" not in has and not {"CAP_BPF", "CAP_PERFMON"} <= has:
        missing.append("CAP_SYS_ADMIN")
    if missing and not host.root_user:
        text = f"not root, and without {', '.join(missing)}"
        return Check("privileges", "fail", text, "run it with sudo")
    if missing:
        text = f"root, but without {', '.join(missing)} (a container)"
        return Check("privileges", "fail", text, "run it on the host, or in a privileged container")
    return Check("privileges", "ok", "root" if host.root_user else "all capabilities needed")


def _signatures(host: Host) -> Check:
    lockdown = host.word("sys/kernel/security/lockdown") or ""
    if "[confidentiality]" in lockdown:
        text = "kernel lockdown (confidentiality) forbids kprobes"
        return Check("signatures", "fail", text, "boot without lockdown=confidentiality")
    if host.word("sys/module/module/parameters/sig_enforce") in ("Y", "1"):
        reason = "module.sig_enforce"
    elif "[integrity]" in lockdown:
        reason = "kernel lockdown, Secure Boot"
    else:
        return Check("signatures", "ok", "unsigned modules are taken")
    text = f"the kernel takes signed modules only ({reason})"
    if _inserted(host):
        return Check("signatures", "ok", f"{text}, and {MODULE} is loaded")
    if (built := host.built_module) is not None and _is_signed(built):
        return Check("signatures", "ok", f"{text}, and {MODULE}.ko is signed")
    sign = f"/lib/modules/{host.release}/build/scripts/sign-file"
    file = built or host.module_folder / "*" / f"{MODULE}.ko"
    return Check(
        "signatures",
        "fail",
        f"{text}, and {MODULE}.ko is not signed",
        sudo(host, f"{sign} sha256 MOK.priv MOK.der {file}") + " (with a key that is enrolled)",
    )


def _is_signed(module: os.PathLike[str]) -> bool:
    try:
        with open(module, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(-min(file.tell(), len(_SIGNED)), os.SEEK_END)
            return file.read() == _SIGNED
    except OSError:
        return False


def _module(host: Host) -> Check:
    if _inserted(host):
        return Check("module", "ok", "loaded")
    if host.built_module is not None:
        return Check("module", "ok", f"built for {host.release}")
    if not host.exists(f"lib/modules/{host.release}/build/Makefile"):
        text = f"no module is built for {host.release}, and its headers are missing"
        return Check("module", "fail", text, install(host, f"linux-headers-{host.release}"))
    lacking = [tool for tool in ("gcc", "make") if not host.tool(tool)]
    if lacking:
        text = f"no module is built for {host.release}, and {' and '.join(lacking)} to build it"
        text += " is missing" if len(lacking) == 1 else " are missing"
        return Check("module", "fail", text, install(host, " ".join(lacking)))
    return Check("module", "ok", "headers, gcc and make are there: built at the first start")


def _bpffs(host: Host) -> Check:
    if host.mounts.get("/sys/fs/bpf") == "bpf":
        return Check("bpffs", "ok", "/sys/fs/bpf")
    command = sudo(host, "mount -t bpf bpf /sys/fs/bpf")
    return Check("bpffs", "fail", "/sys/fs/bpf is not mounted", command)


def _bpf_object(host: Host) -> Check:
    if host.bpf_object:
        return Check("BPF programs", "ok", "compiled")
    return Check("BPF programs", "fail", "the BPF programs are not compiled", "make setup")


def _bcc(host: Host) -> Check:
    if host.bcc:
        return Check("bcc", "ok", "Debian's python3-bpfcc")
    text = "Python does not find bcc (of Debian's python3, not the bcc of PyPI)"
    return Check("bcc", "fail", text, install(host, "python3-bpfcc") + " && make setup")


def _libbpf(host: Host) -> Check:
    if host.library("libbpf.so.1"):
        return Check("libbpf", "ok", "libbpf.so.1")
    return Check("libbpf", "fail", "libbpf.so.1 is missing", install(host, "libbpf1"))


def _libpcap(host: Host) -> Check:
    if host.library("libpcap.so.0.8") or host.library("libpcap.so.1"):
        return Check("libpcap", "ok", "filter expressions can be compiled")
    text = "libpcap is missing: no filter expressions"
    return Check("libpcap", "warn", text, install(host, "libpcap0.8"))


def _legacy(host: Host) -> Check:
    """Is there anything to probe?  Without ipt_do_table the module refuses to arm."""
    found = [
        module
        for module, symbol in (("ip_tables", "ipt_do_table"), ("ip6_tables", "ip6t_do_table"))
        if module in host.modules or symbol in (host.symbols or ())
    ]
    if not found:
        text = "no legacy iptables in this kernel yet (ip_tables, ip6_tables)"
        return Check("ip_tables", "fail", text, sudo(host, "modprobe -a ip_tables ip6_tables"))
    if len(found) == 1:
        other = "ip6_tables" if found == ["ip_tables"] else "ip_tables"
        text = f"{found[0]} is there, {other} is not"
        return Check("ip_tables", "warn", text, sudo(host, f"modprobe {other}"))
    return Check("ip_tables", "ok", "ip_tables and ip6_tables are there")


def _flavour(host: Host) -> Check:
    """Which rules there are, or would be: each engine sees its own."""
    tables = [
        f"{family}: {' '.join(sorted(names.split()))}"
        for family, path in (
            ("IPv4", "proc/net/ip_tables_names"),
            ("IPv6", "proc/net/ip6_tables_names"),
        )
        if (names := host.read(path)) and names.strip()
    ]
    if tables:
        return Check("rules", "ok", f"legacy tables in use here ({', '.join(tables)})")
    links = [host.link(path) for path in ("etc/alternatives/iptables", "usr/sbin/iptables")]
    if any("nft" in link for link in links):
        text = "no legacy tables in this namespace: iptables is iptables-nft"
        return Check("rules", "ok", f"{text}, traced over netlink")
    if not host.tool("iptables") and not host.tool("iptables-legacy"):
        return Check("rules", "warn", "iptables is not installed", install(host, "iptables"))
    text = "no legacy tables in this namespace, or not to be told"
    return Check("rules", "warn", text, sudo(host, "iptables-legacy-save"))


def _leftovers(host: Host) -> Check:
    left = []
    if host.exists(PINS):
        if (pid := host.pins_holder) is not None:
            return Check("leftovers", "ok", f"an ipttrace is running (pid {pid})")
        left.append((f"pins under /{PINS}", f"rm -r /{PINS}"))
    if MODULE in host.modules:
        left.append((f"module {MODULE}", f"rmmod {MODULE}"))
    if not left:
        return Check("leftovers", "ok", "none")
    text = "of a run that died, cleaned at the next start: " + ", ".join(what for what, _ in left)
    command = " && ".join(sudo(host, command) for _, command in reversed(left))
    return Check("leftovers", "warn", text, command)


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
            text = "switched off for users: a lab network needs root"
            return Check("user namespaces", "warn", text, sudo(host, f"sysctl -w {command}"))
    if not host.exists("proc/self/ns/user"):
        return Check("user namespaces", "warn", "not in this kernel: a lab network needs root")
    return Check("user namespaces", "ok", "can be made")


# What the kernel engine cannot do without.  What cannot be mended on the
# running kernel comes first: nobody should install headers in vain.
_NEEDED: Final[tuple[Callable[[Host], Check], ...]] = (
    _kernel,
    _modules,
    _kprobes,
    _trace,
    _btf,
    _privileges,
    _signatures,
    _module,
    _bpf_object,
    _libbpf,
    _bcc,
    _bpffs,
    _legacy,
)
_OTHERS: Final[tuple[Callable[[Host], Check], ...]] = (
    _libpcap,
    _flavour,
    doctor_netlink.nftables,
    _leftovers,
    _user_namespaces,
)


def why_not(host: Host) -> Check | None:
    """The first reason why the kernel engine cannot run here; None when it can."""
    return next((found for check in _NEEDED if (found := check(host)).status == "fail"), None)


def checks(host: Host) -> list[Check]:
    """Every finding, and last what follows for each engine."""
    found = [check(host) for check in (*_NEEDED, *_OTHERS)]
    reason = why_not(host)
    if reason is None:
        found.append(Check("engine: kernel", "ok", "yes"))
    else:
        found.append(Check("engine: kernel", "fail", f"no, because {reason.text}", reason.remedy))
    found.append(doctor_netlink.engine(host))
    return found


def render(found: list[Check], colour: bool = False) -> str:
    """The findings as aligned lines; below what can be mended, the command."""
    names = max((len(check.name) for check in found), default=0)
    lines = []
    for check in found:
        status = f"{check.status:<4}"
        if colour:
            status = f"{_COLOURS[check.status]}{status}\x1b[0m"
        lines.append(f"{status}  {check.name:<{names}}  {_shown(check.text)}")
        if check.remedy and check.status != "ok":
            lines.append(f"{'':4}  {'':<{names}}  → {_shown(check.remedy)}")
    return "".join(f"{line}\n" for line in lines)


def _shown(text: str) -> str:
    """One line that no terminal obeys: releases and links come from files."""
    return "".join(char if char.isprintable() else "?" for char in text)


def run(host: Host | None = None) -> int:
    """`ipttrace doctor`: the findings on stdout; 0 when an engine can run here, 1 when none."""
    host = host or Host.here()
    found = checks(host)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    sys.stdout.write(render(found, colour))
    return 0 if any(c.name.startswith("engine") and c.status == "ok" for c in found) else 1
