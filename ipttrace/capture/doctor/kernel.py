# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel engine needs from a machine, one check each.

Must not read anything except the `Host`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from ipttrace.capture.doctor.check import BOOT, ENABLE_MODULES, Check, install, sudo
from ipttrace.capture.doctor.machine import MODULE, PINS, Host

OLDEST: Final = (5, 10)
_SIGNED: Final = b"~Module signature appended~\n"  # MODULE_SIG_STRING of linux/module_signature.h


def _release(host: Host) -> Check:
    if host.version is not None and host.version < OLDEST:
        text = f"kernel {host.release} is too old: Linux 5.10 or newer is needed"
        return Check("kernel", "fail", text, "boot Linux 5.10 or newer")
    return Check("kernel", "ok", host.release)


def _inserted(host: Host) -> bool:
    """Whether ipttrace's module is loaded, and not left by a dead run, to be replaced."""
    return MODULE in host.modules and not host.exists(PINS)


def _modules(host: Host) -> Check:
    if not host.exists("proc/modules"):
        text = f"kernel {host.release} cannot load modules (CONFIG_MODULES is off)"
        return Check("modules", "fail", text, BOOT)
    if host.word("proc/sys/kernel/modules_disabled") == "1" and not _inserted(host):
        text = "loading of modules is disabled until the next boot (kernel.modules_disabled)"
        return Check("modules", "fail", text, ENABLE_MODULES)
    return Check("modules", "ok", "can be loaded")


def _kprobes(host: Host) -> Check:
    lacking = Check(
        "kprobes",
        "fail",
        f"kernel {host.release} has no kretprobes (CONFIG_KRETPROBES is off)",
        BOOT,
    )
    if host.word("sys/kernel/debug/kprobes/enabled") == "0":
        command = "sh -c 'echo 1 > /sys/kernel/debug/kprobes/enabled'"
        return Check("kprobes", "fail", "kprobes are disabled", sudo(host, command))
    if host.symbols is not None:
        found = "register_kretprobe" in host.symbols
    elif host.config is not None:
        found = host.config.get("CONFIG_KRETPROBES") == "y"
    else:
        text = "unknown: the kernel shows neither its symbols nor its configuration"
        return Check("kprobes", "warn", text)
    return Check("kprobes", "ok", "kretprobes are available") if found else lacking


def _rule_trace(host: Host) -> Check:
    missing = ""
    if host.symbols is not None and "nf_log_trace" not in host.symbols:
        missing = "CONFIG_NETFILTER"
    config = host.config
    if config is not None and config.get("CONFIG_NETFILTER_XT_TARGET_TRACE") not in ("y", "m"):
        missing = missing or "CONFIG_NETFILTER_XT_TARGET_TRACE"
    if missing:
        text = f"kernel {host.release} cannot report rule hits ({missing} is off)"
        return Check("rule trace", "fail", text, BOOT)
    return Check("rule trace", "ok", "the kernel reports rule hits")


def _btf(host: Host) -> Check:
    if host.exists("sys/kernel/btf/vmlinux"):
        return Check("BTF", "ok", "/sys/kernel/btf/vmlinux")
    text = f"kernel {host.release} has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)"
    return Check("BTF", "fail", text, "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")


def _privileges(host: Host) -> Check:
    if host.in_user_namespace:
        text = "root of a user namespace only (a rootless container): modules need the host's root"
        return Check("privileges", "fail", text, "run it on the host, with sudo")
    has = host.capabilities
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_SYS_MODULE") if name not in has]
    if "CAP_SYS_ADMIN" not in has and not {"CAP_BPF", "CAP_PERFMON"} <= has:
        missing.append("CAP_SYS_ADMIN")
    if missing and not host.root_user:
        text = f"not root, and without {', '.join(missing)}"
        return Check("privileges", "fail", text, "run it with sudo")
    if missing:
        text = f"root, but without {', '.join(missing)} (in a container?)"
        return Check("privileges", "fail", text, "run it on the host, or in a privileged container")
    return Check("privileges", "ok", "root" if host.root_user else "all needed capabilities")


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
        return Check("signatures", "ok", "unsigned modules are accepted")
    text = f"the kernel accepts signed modules only ({reason})"
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
        sudo(host, f"{sign} sha256 MOK.priv MOK.der {file}")
        + " (with an enrolled key: mokutil --import MOK.der)",
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
        verb = "is" if len(lacking) == 1 else "are"
        tools = " and ".join(lacking)
        text = f"no module is built for {host.release}, and {tools} {verb} missing"
        return Check("module", "fail", text, install(host, " ".join(lacking)))
    return Check(
        "module",
        "ok",
        "not built yet: the first start builds it (headers, gcc and make are installed)",
    )


def _bpffs(host: Host) -> Check:
    if host.mounts.get("/sys/fs/bpf") == "bpf":
        return Check("bpffs", "ok", "/sys/fs/bpf")
    command = sudo(host, "mount -t bpf bpf /sys/fs/bpf")
    return Check("bpffs", "fail", "no BPF file system is mounted on /sys/fs/bpf", command)


def _bpf_object(host: Host) -> Check:
    if host.bpf_object:
        return Check("BPF programs", "ok", "compiled")
    return Check("BPF programs", "fail", "the BPF programs are not compiled", "make setup")


def _bcc(host: Host) -> Check:
    if host.bcc:
        return Check("bcc", "ok", "Debian's python3-bpfcc")
    text = "Python cannot find bcc (Debian's python3-bpfcc; PyPI's bcc is another package)"
    return Check("bcc", "fail", text, install(host, "python3-bpfcc") + " && make setup")


def _libbpf(host: Host) -> Check:
    if host.library("libbpf.so.1"):
        return Check("libbpf", "ok", "libbpf.so.1")
    return Check("libbpf", "fail", "libbpf.so.1 is missing", install(host, "libbpf1"))


def _legacy(host: Host) -> Check:
    """Whether there is anything to probe: without ipt_do_table the module refuses to arm."""
    found = [
        module
        for module, symbol in (("ip_tables", "ipt_do_table"), ("ip6_tables", "ip6t_do_table"))
        if module in host.modules or symbol in (host.symbols or ())
    ]
    if not found:
        text = "legacy iptables is not loaded (ip_tables, ip6_tables)"
        return Check("ip_tables", "fail", text, sudo(host, "modprobe -a ip_tables ip6_tables"))
    if len(found) == 1:
        other = "ip6_tables" if found == ["ip_tables"] else "ip_tables"
        text = f"{found[0]} is loaded, {other} is not"
        return Check("ip_tables", "warn", text, sudo(host, f"modprobe {other}"))
    return Check("ip_tables", "ok", "ip_tables and ip6_tables are loaded")


# What cannot be changed on the running kernel comes first, so that users do not
# install packages in vain.
CHECKS: Final[tuple[Callable[[Host], Check], ...]] = (
    _release,
    _modules,
    _kprobes,
    _rule_trace,
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


def why_not(host: Host) -> Check | None:
    """Returns the first reason why the kernel engine cannot run; None if it can."""
    return next((found for check in CHECKS if (found := check(host)).status == "fail"), None)


def engine(host: Host) -> Check:
    """Whether the kernel engine can run, and if not, why."""
    reason = why_not(host)
    if reason is None:
        return Check("engine: kernel", "ok", "yes")
    return Check("engine: kernel", "fail", f"no, because {reason.text}", reason.remedy)
