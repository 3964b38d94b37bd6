# SPDX-License-Identifier: GPL-2.0-only
"""The doctor on machines made of files: what it finds, and what it tells one to do."""

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
from ipttrace.capture.doctor.check import Check
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
    """A machine that lacks nothing, but for what a test takes away (None) or changes."""

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
        "root, but without CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_ADMIN (a container)",
        "run it on the host, or in a privileged container",
    ),
    "root of a user namespace": (
        {"proc/self/uid_map": "0 1000 1\n"},
        "root only inside a user namespace (a rootless container): not enough for modules",
        "run it on the host, with sudo",
    ),
    "old kernel": (
        {"proc/sys/kernel/osrelease": "4.19.0-27-amd64\n"},
        "4.19.0-27-amd64 is too old: 5.10 is the oldest that can be traced",
        "boot a newer kernel",
    ),
    "a kernel without modules": (
        {"proc/modules": None},
        f"kernel {RELEASE} cannot load modules (CONFIG_MODULES is off)",
        "boot a kernel of the distribution, or ipttrace lab",
    ),
    "modules switched off": (
        {"proc/sys/kernel/modules_disabled": "1\n"},
        "loading of modules is switched off until the next boot (kernel.modules_disabled)",
        "reboot without kernel.modules_disabled=1",
    ),
    "no kprobes": (
        {"proc/kallsyms": KALLSYMS.replace("register_kretprobe", "other")},
        f"kernel {RELEASE} has no kretprobes (CONFIG_KRETPROBES)",
        "boot a kernel of the distribution, or ipttrace lab",
    ),
    "no kprobes, symbols hidden": (
        {"proc/kallsyms": None, f"boot/config-{RELEASE}": "CONFIG_NETFILTER_XT_TARGET_TRACE=m\n"},
        f"kernel {RELEASE} has no kretprobes (CONFIG_KRETPROBES)",
        "boot a kernel of the distribution, or ipttrace lab",
    ),
    "kprobes off": (
        {"sys/kernel/debug/kprobes/enabled": "0\n"},
        "kprobes are switched off",
        "sh -c 'echo 1 > /sys/kernel/debug/kprobes/enabled'",
    ),
    "no TRACE target": (
        {f"boot/config-{RELEASE}": "CONFIG_KRETPROBES=y\n"},
        f"kernel {RELEASE} cannot trace rules (CONFIG_NETFILTER_XT_TARGET_TRACE)",
        "boot a kernel that has it",
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
        f"no module is built for {RELEASE}, and gcc and make to build it are missing",
        "apt install gcc make",
    ),
    "lockdown confidentiality": (
        {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
        "kernel lockdown (confidentiality) forbids kprobes",
        "boot without lockdown=confidentiality",
    ),
    "bpffs not mounted": (
        {"proc/self/mounts": "sysfs /sys sysfs rw 0 0\n"},
        "/sys/fs/bpf is not mounted",
        "mount -t bpf bpf /sys/fs/bpf",
    ),
    "no libbpf": (
        {"usr/lib/x86_64-linux-gnu/libbpf.so.1": None},
        "libbpf.so.1 is missing",
        "apt install libbpf1",
    ),
    "no legacy iptables": (
        {"proc/modules": "x 1 0 - Live 0x0\n", "proc/kallsyms": KALLSYMS.replace("t_do", "t_")},
        "no legacy iptables in this kernel yet (ip_tables, ip6_tables)",
        "modprobe -a ip_tables ip6_tables",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_said_in_one_line_with_what_to_do(
    case: str, machine: Callable[..., Host], capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a machine that lacks one thing
    changes, text, remedy = CASES[case]
    host = machine(changes)
    # WHEN one asks why it cannot trace THEN that is the answer, with its remedy
    reason = why_not(host)
    assert reason is not None
    assert (reason.text, reason.remedy) == (text, remedy)
    assert "\n" not in reason.line()
    # AND the doctor says so, and is content if the other engine can run
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
def test_enforced_signatures_say_how_to_sign_and_take_a_signed_module(
    changes: dict[str, str | None], why: str, machine: Callable[..., Host]
) -> None:
    # GIVEN a kernel that takes signed modules only, and a module that is built and not signed
    host = machine({**changes, BUILT: "ELF"})
    # THEN the command that signs this very file is named
    reason = why_not(host)
    assert reason is not None
    assert why in reason.text
    assert reason.remedy == (
        f"/lib/modules/{RELEASE}/build/scripts/sign-file sha256 MOK.priv MOK.der "
        f"{host.root / BUILT} (with a key that is enrolled)"
    )
    # AND when it is signed, nothing stands in the way
    (host.root / BUILT).write_text("ELF~Module signature appended~\n")
    assert why_not(replace(host)) is None


def test_a_module_that_is_built_needs_neither_headers_nor_compiler(
    machine: Callable[..., Host],
) -> None:
    lacking: dict[str, str | None] = {
        f"lib/modules/{RELEASE}/build/Makefile": None,
        "usr/bin/gcc": None,
        BUILT: "ELF",
    }
    host = machine(lacking)
    assert found(host, "module") == Check("module", "ok", f"built for {RELEASE}")
    # But one of another version does not fit.
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
def test_the_cache_is_looked_for_where_modules_are_built(
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


def test_what_is_wanted_only_by_some_warns_and_does_not_stand_in_the_way(
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


def test_iptables_nft_without_legacy_rules_is_pointed_out(machine: Callable[..., Host]) -> None:
    host = machine({"proc/net/ip_tables_names": ""})
    link = host.root / "etc/alternatives/iptables"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/sbin/iptables-nft")
    rules = found(host, "rules")
    assert rules.status == "ok"
    assert "iptables is iptables-nft, traced over netlink" in rules.text


CONFIG = f"boot/config-{RELEASE}"
LEGACY_TRACE = "CONFIG_KRETPROBES=y\nCONFIG_NETFILTER_XT_TARGET_TRACE=m\n"
MODULE_FILES = f"lib/modules/{RELEASE}/kernel/net/netfilter"
NETLINK_CASES: dict[str, tuple[dict[str, str | None], str, str, str]] = {
    "no root": (
        {"proc/self/status": USER},
        "fail",
        "no, because not root, and without CAP_NET_ADMIN",
        "run it with sudo, or look at ipttrace demo",
    ),
    "root of a container": (
        {"proc/self/status": "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n"},
        "fail",
        "no, because root, but without CAP_NET_ADMIN (a container)",
        "give the container NET_ADMIN",
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
        f"no, because kernel {RELEASE} has no nf_tables (CONFIG_NF_TABLES)",
        "boot a kernel of the distribution, or ipttrace lab",
    ),
    "no modules, and not built in": (
        {"proc/modules": None, CONFIG: None},
        "fail",
        f"no, because kernel {RELEASE} has no nf_tables (CONFIG_NF_TABLES)",
        "boot a kernel of the distribution, or ipttrace lab",
    ),
    "a module that is not installed": (
        {f"{MODULE_FILES}/nf_tables.ko": None},
        "fail",
        f"no, because nf_tables is not loaded, and is not in /lib/modules/{RELEASE}",
        f"install all modules of {RELEASE}",
    ),
    "a module that may not be loaded": (
        {"proc/sys/kernel/modules_disabled": "1\n"},
        "fail",
        "no, because nf_tables is not loaded, and loading is switched off"
        " (kernel.modules_disabled)",
        "reboot without kernel.modules_disabled=1",
    ),
    "one that was loaded before": (
        {
            "proc/sys/kernel/modules_disabled": "1\n",
            "proc/modules": "nf_tables 1 0 - Live 0x0\nnfnetlink_log 1 0 - Live 0x0\n",
        },
        "ok",
        "yes: iptables-nft, nftables and legacy",
        "",
    ),
    "nothing that can be told": (
        {CONFIG: None, "proc/kallsyms": None, f"{MODULE_FILES}/nf_tables.ko": None},
        "warn",
        "not to be told whether the kernel has nf_tables",
        "modprobe nf_tables",
    ),
    "no nfnetlink_log": (
        {CONFIG: LEGACY_TRACE + "CONFIG_NF_TABLES=m\n"},
        "ok",
        "yes: iptables-nft, nftables",
        "",
    ),
    "legacy tables that cannot tell": (
        {CONFIG: NETLINK},
        "ok",
        "yes: iptables-nft, nftables",
        "",
    ),
}


@pytest.mark.parametrize("case", NETLINK_CASES)
def test_it_says_what_can_be_traced_over_netlink_or_why_nothing(
    case: str, machine: Callable[..., Host]
) -> None:
    changes, status, text, remedy = NETLINK_CASES[case]
    host = machine(changes)
    assert found(host, "engine: netlink") == Check("engine: netlink", status, text, remedy)  # type: ignore[arg-type]
    able = why_not(host) is None or status == "ok"
    assert doctor.run(host) == (0 if able else 1)


def test_root_of_a_user_namespace_can_trace_its_own_networks_only(
    machine: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN root of a user namespace, in a network of its own
    host = machine({"proc/self/uid_map": "0 1000 1\n"})
    monkeypatch.setattr(Host, "owner", lambda self, path: 0)
    # THEN it can trace, and is told where
    only = "yes: iptables-nft, nftables and legacy (in this user namespace's own networks only)"
    assert found(host, "engine: netlink") == Check("engine: netlink", "ok", only)
    # AND in the host's network it cannot: its files are nobody's
    monkeypatch.setattr(Host, "owner", lambda self, path: 65534)
    refused = found(host, "engine: netlink")
    assert refused.text == "no, because the network here is not this user namespace's"
    assert refused.remedy == "unshare -n, or look at ipttrace demo"


def test_what_would_flood_the_kernels_log_is_refused_in_the_first_network_only(
    machine: Callable[..., Host],
) -> None:
    # GIVEN legacy tables, and nothing that takes what they tell
    host = machine({CONFIG: LEGACY_TRACE + "CONFIG_NF_TABLES=m\n"})
    for pid, network in (("1", "net:[4026531840]"), ("self", "net:[4026532000]")):
        link = host.root / "proc" / pid / "ns" / "net"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(network)
    # THEN in a network of one's own they are not traced, the rest is
    assert found(host, "engine: netlink").text == "yes: iptables-nft, nftables"
    # AND in the host's own nothing is
    link.unlink()
    link.symlink_to("net:[4026531840]")
    refused = found(host, "engine: netlink")
    assert refused.status == "fail"
    assert "has no nfnetlink_log (CONFIG_NETFILTER_NETLINK_LOG)" in refused.text
    assert refused.text.endswith("the kernel's log would be flooded")


def test_without_nft_rules_have_no_texts(machine: Callable[..., Host]) -> None:
    missing = found(machine({"usr/sbin/nft": None}), "nftables")
    assert (missing.status, missing.remedy) == ("warn", "apt install nftables")
    assert "have no texts" in missing.text


def test_what_a_dead_run_left_is_named_with_the_command_that_removes_it(
    machine: Callable[..., Host],
) -> None:
    host = machine({"proc/modules": GOOD["proc/modules"] + "ipttrace 45056 0 - Live 0x0 (OE)\n"})
    (host.root / "sys/fs/bpf/ipttrace").mkdir(parents=True)
    left = found(host, "leftovers")
    assert left.status == "warn"
    assert left.remedy == "rmmod ipttrace && rm -r /sys/fs/bpf/ipttrace"


def test_what_a_living_run_holds_is_no_leftover(machine: Callable[..., Host]) -> None:
    host = machine({"proc/modules": GOOD["proc/modules"] + "ipttrace 45056 2 - Live 0x0 (OE)\n"})
    pins = host.root / "sys/fs/bpf/ipttrace"
    pins.mkdir(parents=True)
    at = pins.stat()
    device = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
    write(host.root, {"proc/locks": f"1: FLOCK  ADVISORY  WRITE 4242 {device} 0 EOF\n"})
    assert found(host, "leftovers") == Check("leftovers", "ok", "an ipttrace is running (pid 4242)")


def test_missing_parts_of_ipttrace_itself_are_named(machine: Callable[..., Host]) -> None:
    host = machine()
    assert (
        found(replace(host, bcc=False), "bcc").remedy == "apt install python3-bpfcc && make setup"
    )
    assert found(replace(host, bpf_object=False), "BPF programs").remedy == "make setup"


def test_an_empty_or_hostile_machine_breaks_nothing(tmp_path: Path) -> None:
    # GIVEN a root folder with nothing in it
    assert why_not(Host(tmp_path)) is not None
    assert render(checks(Host(tmp_path)))
    # AND one whose files hold anything at all
    write(tmp_path, dict.fromkeys(GOOD, "\x1b[2J \x00 : = , \n-1\n\n"))
    write(tmp_path, {"proc/sys/kernel/osrelease": "\x1b]0;x\x07", "proc/locks": "FLOCK\n"})
    (tmp_path / "proc/config.gz").write_bytes(b"\x1f\x8b\x08damaged")
    (tmp_path / "sys/fs/bpf/ipttrace").mkdir(parents=True)
    # THEN there is a finding a line, and nothing that a terminal obeys
    shown = render(checks(Host(tmp_path)))
    assert all(line.isprintable() for line in shown.splitlines())


def test_findings_stand_in_columns_and_are_coloured_only_when_asked() -> None:
    both = [Check("BTF", "ok", "there"), Check("bpffs", "fail", "gone", "mount")]
    assert render(both) == "ok    BTF    there\nfail  bpffs  gone\n             → mount\n"
    assert render(both, colour=True).startswith("\x1b[32mok  \x1b[0m  BTF    there\n")


def test_the_release_of_this_machine_is_read_from_its_files() -> None:
    assert Host.here().release == os.uname().release


def test_this_machine_can_be_asked_without_loading_bcc() -> None:
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
