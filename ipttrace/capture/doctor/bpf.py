# SPDX-License-Identifier: GPL-2.0-only
"""What the BPF engine needs from a machine.

Must not read anything except the `Host`.
"""

from __future__ import annotations

from typing import Final

from ipttrace.capture.doctor import netlink
from ipttrace.capture.doctor.check import BOOT, Check, install
from ipttrace.capture.doctor.machine import Host

_NAME: Final = "engine: bpf"
LIBRARY: Final = "libbpf.so.1"
_MODULES_BTF: Final = (5, 11)
_NEEDED: Final = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")


def engine(host: Host) -> Check:
    """Whether the BPF engine can run."""
    if (why := why_not(host)) is not None:
        return why
    # Other reasons, such as a security module's policy, are in no file.
    accepted, reason = host.try_bpf()
    if not accepted:
        return Check(_NAME, "fail", f"no, because {reason}")
    # Legacy tables need what they need over netlink.
    text = netlink.engine(host).text
    return Check(_NAME, "ok", f"{text}, with kprobes (no fentry: {reason})" if reason else text)


def why_not(host: Host) -> Check | None:
    """The first reason that files show why the BPF engine cannot run, or None.

    The engine itself finds the others when it loads its programs.
    """
    if not host.root_user or any(one not in host.capabilities for one in _NEEDED):
        text = f"no, because it needs root with {', '.join(_NEEDED)}"
        return Check(_NAME, "fail", text, "run it with sudo")
    if not host.exists("sys/kernel/btf/vmlinux"):
        return Check(_NAME, "fail", f"no, because kernel {host.release} has no BTF", BOOT)
    old = (host.version or (0, 0)) < _MODULES_BTF
    if not host.exists("sys/kernel/btf/nf_tables") and (old or "nf_tables" in host.modules):
        text = f"no, because kernel {host.release} has no BTF for its modules"
        return Check(_NAME, "fail", text, BOOT)
    # Its flip tables flip packets, and its rulesets say which rules they met.
    flips = netlink.engine(host)
    if flips.status != "ok":
        return Check(_NAME, flips.status, flips.text, flips.remedy)
    if not host.library(LIBRARY):
        text = f"no, because {LIBRARY} is missing"
        return Check(_NAME, "fail", text, install(host, "libbpf1"))
    if "[confidentiality]" in (host.word("sys/kernel/security/lockdown") or ""):
        text = "no, because lockdown=confidentiality keeps BPF from reading the kernel"
        return Check(_NAME, "fail", text, "boot with lockdown=integrity")
    return None
