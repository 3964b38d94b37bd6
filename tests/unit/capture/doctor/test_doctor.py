# SPDX-License-Identifier: GPL-2.0-only
"""The doctor on machines made of files: its findings, and the remedies it names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipttrace.capture import doctor
from ipttrace.capture.doctor import checks, render, why_not
from ipttrace.capture.doctor.check import BOOT, ENABLE_MODULES, Check
from ipttrace.capture.doctor.machine import Host

RELEASE = "6.1.0-56-amd64"
CACHE = "root/.cache/ipttrace"
BUILT = f"{CACHE}/modules/{RELEASE}/0123456789abcdef/ipttrace.ko"

KALLSYMS = """\
0000000000000000 T register_kretprobe
0000000000000000 T nf_log_trace
0000000000000000 t ipt_do_table\t[ip_tables]
0000000000000000 t ip6t_do_table\t[ip6_tables]
"""

NETLINK = "CONFIG_NF_TABLES=m\nCONFIG_NETFILTER_NETLINK_LOG=m\n"

GOOD = {
    "proc/sys/kernel/osrelease": f"{RELEASE}\n",
    "proc/self/status": "Name:\tpython3\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
    "proc/self/uid_map": "         0          0 4294967295\n",
    "proc/self/mounts": "bpf /sys/fs/bpf bpf rw,nosuid,mode=700 0 0\n",
    "proc/self/ns/user": "",
    "proc/modules": "ip_tables 36864 1 - Live 0x0\nip6_tables 36864 0 - Live 0x0\n",
    "proc/kallsyms": KALLSYMS,
    "proc/net/ip_tables_names": "nat\nfilter\n",
    "proc/sys/user/max_user_namespaces": "15000\n",
    f"boot/config-{RELEASE}": "CONFIG_KRETPROBES=y\nCONFIG_NETFILTER_XT_TARGET_TRACE=m\n" + NETLINK,
    "sys/kernel/btf/vmlinux": "BTF",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/module/module/parameters/sig_enforce": "N\n",
    f"lib/modules/{RELEASE}/build/Makefile": "",
    f"lib/modules/{RELEASE}/kernel/net/netfilter/nf_tables.ko": "",
    f"lib/modules/{RELEASE}/kernel/net/netfilter/nfnetlink_log.ko.xz": "",
    "usr/bin/gcc": "",
    "usr/bin/make": "",
    "usr/sbin/nft": "",
    "usr/lib/x86_64-linux-gnu/libbpf.so.1": "",
    "usr/lib/x86_64-linux-gnu/libpcap.so.0.8": "",
}

USER = "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Host]:
    """A machine that lacks nothing, except what a test removes (None) or changes."""

    def make(changes: dict[str, str | None] | None = None) -> Host:
        files: dict[str, str | None] = {**GOOD, **(changes or {})}
        write(tmp_path, {name: text for name, text in files.items() if text is not None})
        return Host(tmp_path, {"HOME": "/root"})

    return make


def found(host: Host, name: str) -> Check:
    return next(check for check in checks(host) if check.name == name)


def test_a_machine_that_lacks_nothing_can_trace(machine: Callable[..., Host]) -> None:
    host = machine()
    assert [check for check in checks(host) if check.status != "ok"] == []
    assert found(host, "engine: netlink").text == "yes: iptables-nft, nftables and legacy"
    assert why_not(host) is None
    assert doctor.run(host) == 0


CASES: dict[str, tuple[dict[str, str | None], str, str]] = {
    "no root": (
        {"proc/self/status": USER},
        "not root, and without CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_ADMIN",
        "run it with sudo",
    ),
    "root of a container": (
        {"proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"},
        "root, but without CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_ADMIN (in a container?)",
        "run it on the host, or in a privileged container",
    ),
    "root of a user namespace": (
        {"proc/self/uid_map": "0 1000 1\n"},
        "root of a user namespace only (a rootless container): modules need the host's root",
        "run it on the host, with sudo",
    ),
    "old kernel": (
        {"proc/sys/kernel/osrelease": "4.19.0-27-amd64\n"},
        "kernel 4.19.0-27-amd64 is too old: Linux 5.10 or newer is needed",
        "boot Linux 5.10 or newer",
    ),
    "a kernel without modules": (
        {"proc/modules": None},
        f"kernel {RELEASE} cannot load modules (CONFIG_MODULES is off)",
        BOOT,
    ),
    "modules switched off": (
        {"proc/sys/kernel/modules_disabled": "1\n"},
        "loading of modules is disabled until the next boot (kernel.modules_disabled)",
        ENABLE_MODULES,
    ),
    "no kprobes": (
        {"proc/kallsyms": KALLSYMS.replace("register_kretprobe", "other")},
        f"kernel {RELEASE} has no kretprobes (CONFIG_KRETPROBES is off)",
        BOOT,
    ),
    "no kprobes, symbols hidden": (
        {"proc/kallsyms": None, f"boot/config-{RELEASE}": "CONFIG_NETFILTER_XT_TARGET_TRACE=m\n"},
        f"kernel {RELEASE} has no kretprobes (CONFIG_KRETPROBES is off)",
        BOOT,
    ),
    "kprobes off": (
        {"sys/kernel/debug/kprobes/enabled": "0\n"},
        "kprobes are disabled",
        "sh -c 'echo 1 > /sys/kernel/debug/kprobes/enabled'",
    ),
    "no TRACE target": (
        {f"boot/config-{RELEASE}": "CONFIG_KRETPROBES=y\n"},
        f"kernel {RELEASE} cannot report rule hits (CONFIG_NETFILTER_XT_TARGET_TRACE is off)",
        BOOT,
    ),
    "no BTF": (
        {"sys/kernel/btf/vmlinux": None},
        f"kernel {RELEASE} has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)",
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    ),
    "headers missing": (
        {f"lib/modules/{RELEASE}/build/Makefile": None},
        f"no module is built for {RELEASE}, and its headers are missing",
        f"apt install linux-headers-{RELEASE}",
    ),
    "no compiler": (
        {"usr/bin/gcc": None, "usr/bin/make": None},
        f"no module is built for {RELEASE}, and gcc and make are missing",
        "apt install gcc make",
    ),
    "lockdown confidentiality": (
        {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
        "kernel lockdown (confidentiality) forbids kprobes",
        "boot without lockdown=confidentiality",
    ),
    "bpffs not mounted": (
        {"proc/self/mounts": "sysfs /sys sysfs rw 0 0\n"},
        "no BPF file system is mounted on /sys/fs/bpf",
        "mount -t bpf bpf /sys/fs/bpf",
    ),
    "no libbpf": (
        {"usr/lib/x86_64-linux-gnu/libbpf.so.1": None},
        "libbpf.so.1 is missing",
        "apt install libbpf1",
    ),
    "no legacy iptables": (
        {"proc/modules": "x 1 0 - Live 0x0\n", "proc/kallsyms": KALLSYMS.replace("t_do", "t_")},
        "legacy iptables is not loaded (ip_tables, ip6_tables)",
        "modprobe -a ip_tables ip6_tables",
    ),
}


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({}, "ok", "yes: iptables-nft, nftables"),
        ({"proc/self/status": USER}, "fail", "needs root"),
        ({"sys/kernel/btf/vmlinux": None}, "fail", "has no BTF"),
        ({"proc/sys/kernel/osrelease": "5.10.0-1-amd64"}, "fail", "no BTF for its modules"),
        ({"proc/modules": "nf_tables 1 1 - Live 0x0\n"}, "fail", "no BTF for its modules"),
        ({"usr/lib/x86_64-linux-gnu/libbpf.so.1": None}, "fail", "libbpf.so.1 is missing"),
        (
            {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
            "fail",
            "lockdown=confidentiality",
        ),
        ({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, "ok", "yes"),
    ],
)
def test_it_says_whether_bpf_can_trace_without_a_module(
    machine: Callable[..., Host], changes: dict[str, str | None], status: str, text: str
) -> None:
    check = found(machine(changes), "engine: bpf")
    assert check.status == status
    assert text in check.text


def test_it_tries_the_programs_since_no_file_shows_what_a_kernel_refuses(
    machine: Callable[..., Host],
) -> None:
    # GIVEN a machine that lacks nothing, whose kernel refuses the programs all the same
    refusal = "the kernel rejected the BPF programs: Operation not permitted"
    host = replace(machine(), try_bpf=lambda: (False, refusal))
    # THEN the doctor gives the kernel's reason
    check = found(host, "engine: bpf")
    assert (check.status, check.text) == ("fail", f"no, because {refusal}")
    # AND what it accepts instead
    host = replace(machine(), try_bpf=lambda: (True, refusal))
    check = found(host, "engine: bpf")
    assert (check.status, check.text.endswith(f", with kprobes (no fentry: {refusal})")) == (
        "ok",
        True,
    )
    # AND does not try where a file shows already why it cannot work
    (host.root / "sys/kernel/btf/vmlinux").unlink()
    assert "has no BTF" in found(host, "engine: bpf").text


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_one_line_with_its_remedy(
    case: str, machine: Callable[..., Host], capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a machine that lacks one thing
    changes, text, remedy = CASES[case]
    host = machine(changes)
    # WHEN the agent asks why it cannot trace THEN that is the answer, with its remedy
    reason = why_not(host)
    assert reason is not None
    assert (reason.text, reason.remedy) == (text, remedy)
    assert "\n" not in reason.line()
    # AND the doctor prints it, and succeeds if the other engine can run
    assert doctor.run(host) == (0 if found(host, "engine: netlink").status == "ok" else 1)
    assert f"no, because {text}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sys/module/module/parameters/sig_enforce": "Y\n"}, "module.sig_enforce"),
        (
            {"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"},
            "kernel lockdown, Secure Boot",
        ),
    ],
)
def test_enforced_signatures_name_the_command_that_signs_and_accept_a_signed_module(
    changes: dict[str, str | None], why: str, machine: Callable[..., Host]
) -> None:
    # GIVEN a kernel that accepts signed modules only, and a module that is built but not signed
    host = machine({**changes, BUILT: "ELF"})
    # THEN the command that signs this very file is named
    reason = why_not(host)
    assert reason is not None
    assert why in reason.text
    assert reason.remedy == (
        f"/lib/modules/{RELEASE}/build/scripts/sign-file sha256 MOK.priv MOK.der "
        f"{host.root / BUILT} (with an enrolled key: mokutil --import MOK.der)"
    )
    # AND once it is signed, tracing is possible
    (host.root / BUILT).write_text("ELF~Module signature appended~\n")
    assert why_not(replace(host)) is None


def test_a_built_module_needs_neither_headers_nor_compiler(
    machine: Callable[..., Host],
) -> None:
    lacking: dict[str, str | None] = {
        f"lib/modules/{RELEASE}/build/Makefile": None,
        "usr/bin/gcc": None,
        BUILT: "ELF",
    }
    host = machine(lacking)
    assert found(host, "module") == Check("module", "ok", f"built for {RELEASE}")
    # AND one of another version does not count
    other = replace(host, source_hash="fedcba9876543210")
    assert found(other, "module").status == "fail"


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"IPTTRACE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "b/ipttrace"),
        ({"HOME": "/c"}, "c/.cache/ipttrace"),
    ],
)
def test_the_cache_is_where_modules_are_built(
    env: dict[str, str], folder: str, machine: Callable[..., Host]
) -> None:
    host = replace(machine(), env=env)
    assert host.module_folder == host.root / folder / "modules" / RELEASE


def test_a_user_gets_commands_with_sudo(machine: Callable[..., Host]) -> None:
    host = machine({"proc/self/status": USER, "proc/self/mounts": ""})
    assert found(host, "bpffs").remedy == "sudo mount -t bpf bpf /sys/fs/bpf"


def test_capabilities_without_root_are_enough(machine: Callable[..., Host]) -> None:
    # GIVEN a user with CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_PERFMON and CAP_BPF
    bits = 1 << 12 | 1 << 16 | 1 << 38 | 1 << 39
    status = USER.replace("CapEff:\t0000000000000000", f"CapEff:\t{bits:016x}")
    assert why_not(machine({"proc/self/status": status})) is None


def test_what_only_some_need_is_a_warning_and_prevents_nothing(
    machine: Callable[..., Host],
) -> None:
    host = machine(
        {
            "usr/lib/x86_64-linux-gnu/libpcap.so.0.8": None,
            "proc/net/ip_tables_names": None,
            "proc/sys/kernel/unprivileged_userns_clone": "0\n",
            "proc/modules": "ip_tables 36864 1 - Live 0x0\n",
            "proc/kallsyms": KALLSYMS.replace("ip6t_do_table", "other"),
        }
    )
    warned = {check.name: check.remedy for check in checks(host) if check.status == "warn"}
    assert warned == {
        "ip_tables": "modprobe ip6_tables",
        "libpcap": "apt install libpcap0.8",
        "rules": "apt install iptables",
        "user namespaces": "sysctl -w kernel.unprivileged_userns_clone=1",
    }
    assert why_not(host) is None


def test_iptables_nft_without_legacy_rules_is_recognised(machine: Callable[..., Host]) -> None:
    host = machine({"proc/net/ip_tables_names": ""})
    link = host.root / "etc/alternatives/iptables"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/sbin/iptables-nft")
    rules = found(host, "rules")
    assert rules.status == "ok"
    assert "iptables is iptables-nft, which is traced over netlink" in rules.text


CONFIG = f"boot/config-{RELEASE}"
LEGACY_TRACE = "CONFIG_KRETPROBES=y\nCONFIG_NETFILTER_XT_TARGET_TRACE=m\n"
MODULE_FILES = f"lib/modules/{RELEASE}/kernel/net/netfilter"
NETLINK_CASES: dict[str, tuple[dict[str, str | None], str, str, str]] = {
    "no root": (
        {"proc/self/status": USER},
        "fail",
        "no, because not root, and without CAP_NET_ADMIN",
        "run it with sudo, or try the demo: ipttrace demo",
    ),
    "root of a container": (
        {"proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"},
        "fail",
        "no, because root, but without CAP_NET_ADMIN (in a container?)",
        "start the container with --cap-add NET_ADMIN",
    ),
    "a container with the capability alone": (
        {"proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80435fb\n"},
        "ok",
        "yes: iptables-nft, nftables and legacy",
        "",
    ),
    "no modules, all built in": (
        {"proc/modules": None, CONFIG: LEGACY_TRACE + NETLINK.replace("=m", "=y")},
        "ok",
        "yes: iptables-nft, nftables and legacy",
        "",
    ),
    "no configuration, but symbols": (
        {
            CONFIG: None,
            f"{MODULE_FILES}/nf_tables.ko": None,
            "proc/kallsyms": KALLSYMS + "0000000000000000 T nft_register_expr\t[nf_tables]\n",
        },
        "ok",
        "yes: iptables-nft, nftables and legacy",
        "",
    ),
    "a kernel without nf_tables": (
        {CONFIG: LEGACY_TRACE + "# CONFIG_NF_TABLES is not set\n"},
        "fail",
        f"no, because kernel {RELEASE} has no nf_tables (CONFIG_NF_TABLES is off)",
        BOOT,
    ),
    "no modules, and not built in": (
        {"proc/modules": None, CONFIG: None},
        "fail",
        f"no, because kernel {RELEASE} has no nf_tables (CONFIG_NF_TABLES is off)",
        BOOT,
    ),
    "a module that is not installed": (
        {f"{MODULE_FILES}/nf_tables.ko": None},
        "fail",
        f"no, because nf_tables is not loaded, and /lib/modules/{RELEASE} does not contain it",
        f"apt install --reinstall linux-image-{RELEASE}",
    ),
    "a module that cannot be loaded": (
        {"proc/sys/kernel/modules_disabled": "1\n"},
        "fail",
        "no, because nf_tables is not loaded, and loading is disabled (kernel.modules_disabled)",
        ENABLE_MODULES,
    ),
    "a module that was loaded before that": (
        {
            "proc/sys/kernel/modules_disabled": "1\n",
            "proc/modules": "nf_tables 1 0 - Live 0x0\nnfnetlink_log 1 0 - Live 0x0\n",
        },
        "ok",
        "yes: iptables-nft, nftables and legacy",
        "",
    ),
    "a kernel that hides everything": (
        {CONFIG: None, "proc/kallsyms": None, f"{MODULE_FILES}/nf_tables.ko": None},
        "warn",
        "unknown whether the kernel has nf_tables",
        "modprobe nf_tables",
    ),
    "no nfnetlink_log": (
        {CONFIG: LEGACY_TRACE + "CONFIG_NF_TABLES=m\n"},
        "ok",
        "yes: iptables-nft, nftables",
        "",
    ),
    "legacy tables without TRACE": (
        {CONFIG: NETLINK},
        "ok",
        "yes: iptables-nft, nftables",
        "",
    ),
}


@pytest.mark.parametrize("case", NETLINK_CASES)
def test_the_netlink_engine_names_what_it_can_trace_or_why_nothing(
    case: str, machine: Callable[..., Host]
) -> None:
    changes, status, text, remedy = NETLINK_CASES[case]
    host = machine(changes)
    assert found(host, "engine: netlink") == Check("engine: netlink", status, text, remedy)  # type: ignore[arg-type]
    able = why_not(host) is None or status == "ok"
    assert doctor.run(host) == (0 if able else 1)


def test_root_of_a_user_namespace_can_trace_its_own_network_namespaces_only(
    machine: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN root of a user namespace, in a network namespace of its own
    host = machine({"proc/self/uid_map": "0 1000 1\n"})
    monkeypatch.setattr(Host, "owner", lambda self, path: 0)
    # THEN it can trace, and the doctor says where
    only = (
        "yes: iptables-nft, nftables and legacy (in network namespaces of this user namespace only)"
    )
    assert found(host, "engine: netlink") == Check("engine: netlink", "ok", only)
    # AND it cannot in the host's network namespace, whose files belong to nobody
    monkeypatch.setattr(Host, "owner", lambda self, path: 65534)
    refused = found(host, "engine: netlink")
    assert refused.text == "no, because this network namespace belongs to another user namespace"
    assert refused.remedy == "run it under unshare -n, or try the demo: ipttrace demo"


def test_tracing_that_would_flood_the_kernels_log_is_refused_in_the_first_namespace_only(
    machine: Callable[..., Host],
) -> None:
    # GIVEN legacy tables, and a kernel without nfnetlink_log
    host = machine({CONFIG: LEGACY_TRACE + "CONFIG_NF_TABLES=m\n"})
    for pid, network in (("1", "net:[4026531840]"), ("self", "net:[4026532000]")):
        link = host.root / "proc" / pid / "ns" / "net"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(network)
    # THEN in another network namespace they are not traced, but nftables is
    assert found(host, "engine: netlink").text == "yes: iptables-nft, nftables"
    # AND in the host's own nothing is traced
    link.unlink()
    link.symlink_to("net:[4026531840]")
    refused = found(host, "engine: netlink")
    assert refused.status == "fail"
    assert "has no nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG is off)" in refused.text
    assert refused.text.endswith("the kernel's log would be flooded")


def test_without_nft_rules_have_no_texts(machine: Callable[..., Host]) -> None:
    missing = found(machine({"usr/sbin/nft": None}), "nftables")
    assert (missing.status, missing.remedy) == ("warn", "apt install nftables")
    assert "have no texts" in missing.text


EXTENSION = f"usr/lib/{os.uname().machine}-linux-gnu/xtables/libxt_IPTTRACE.so"
LOADED = "ip_tables 36864 1 - Live 0x0\nip6_tables 36864 1 - Live 0x0\nipttrace 1 1 - Live 0x0\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "iptables has no -j IPTTRACE: make install-xtables adds it"),
        ({EXTENSION: ""}, "rules may have -j IPTTRACE once the module is loaded: make dkms"),
        ({EXTENSION: "", "proc/modules": LOADED}, "rules may have -j IPTTRACE"),
    ],
)
def test_breakpoints_are_explained(
    machine: Callable[..., Host], files: dict[str, str], words: str
) -> None:
    one = found(machine(files), "breakpoints")
    assert (one.status, one.text[: len(words)]) == ("ok", words)


def test_a_module_that_rules_use_was_not_left_by_a_dead_run(machine: Callable[..., Host]) -> None:
    host = machine({"proc/modules": LOADED, "sys/module/ipttrace/refcnt": "2\n"})
    assert found(host, "leftovers").text == "none"


def test_leftovers_of_a_dead_run_are_named_with_the_command_that_removes_them(
    machine: Callable[..., Host],
) -> None:
    host = machine({"proc/modules": GOOD["proc/modules"] + "ipttrace 45056 0 - Live 0x0 (OE)\n"})
    (host.root / "sys/fs/bpf/ipttrace").mkdir(parents=True)
    left = found(host, "leftovers")
    assert left.status == "warn"
    assert left.remedy == "rmmod ipttrace && rm -r /sys/fs/bpf/ipttrace"


def test_a_running_ipttrace_is_not_a_leftover(machine: Callable[..., Host]) -> None:
    host = machine({"proc/modules": GOOD["proc/modules"] + "ipttrace 45056 2 - Live 0x0 (OE)\n"})
    pins = host.root / "sys/fs/bpf/ipttrace"
    pins.mkdir(parents=True)
    at = pins.stat()
    device = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
    write(host.root, {"proc/locks": f"1: FLOCK  ADVISORY  WRITE 4242 {device} 0 EOF\n"})
    assert found(host, "leftovers") == Check(
        "leftovers", "ok", "none: ipttrace is running (pid 4242)"
    )


def test_missing_parts_of_ipttrace_itself_are_named(machine: Callable[..., Host]) -> None:
    host = machine()
    assert (
        found(replace(host, bcc=False), "bcc").remedy == "apt install python3-bpfcc && make setup"
    )
    assert found(replace(host, bpf_object=False), "BPF programs").remedy == "make setup"


def test_an_empty_or_hostile_machine_raises_nothing(tmp_path: Path) -> None:
    # GIVEN a root folder with nothing in it
    assert why_not(Host(tmp_path)) is not None
    assert render(checks(Host(tmp_path)))
    # AND one whose files contain arbitrary text
    write(tmp_path, dict.fromkeys(GOOD, "\x1b[2J \x00 : = , \n-1\n\n"))
    write(tmp_path, {"proc/sys/kernel/osrelease": "\x1b]0;x\x07", "proc/locks": "FLOCK\n"})
    (tmp_path / "proc/config.gz").write_bytes(b"\x1f\x8b\x08damaged")
    (tmp_path / "sys/fs/bpf/ipttrace").mkdir(parents=True)
    # THEN each finding is one line, without terminal escapes
    shown = render(checks(Host(tmp_path)))
    assert all(line.isprintable() for line in shown.splitlines())


def test_findings_are_aligned_and_coloured_on_request_only() -> None:
    both = [Check("BTF", "ok", "there"), Check("bpffs", "fail", "gone", "mount")]
    assert render(both) == "ok    BTF    there\nfail  bpffs  gone\n             → mount\n"
    assert render(both, colour=True).startswith("\x1b[32mok  \x1b[0m  BTF    there\n")


def test_the_release_of_this_machine_is_read_from_its_files() -> None:
    assert Host.here().release == os.uname().release


def test_this_machine_is_examined_without_loading_bcc() -> None:
    # GIVEN whatever machine this is, WHEN it is examined in a process of its own
    program = (
        "import sys; from ipttrace.capture import doctor\n"
        "code = doctor.run()\n"
        "assert 'bcc' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # THEN it answers for both engines, without a traceback
    assert run.returncode in (0, 1), run.stderr
    assert run.stderr == ""
    assert "engine: kernel" in run.stdout
    assert "engine: netlink" in run.stdout
