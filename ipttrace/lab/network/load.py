# SPDX-License-Identifier: GPL-2.0-only
"""Loading rules into a namespace, and finding out what the kernel lacks.

One iptables-restore per namespace and family.  Only if that fails is each match
and target of the text tried on its own.  Must not know what the rules mean.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from ipttrace.lab.network.ns import NetworkError, run_in

_USES = re.compile(r"-(j|m) (\S+)")
_STANDARD = {"ACCEPT", "DROP", "RETURN", "QUEUE"}


# What lab/network/rules.py makes the kernel load, one modprobe after the other; a
# name that a kernel does not know (or has built in) does no harm.
_MODULES: Final = (
    "veth ip_tables ip6_tables iptable_raw iptable_mangle iptable_nat iptable_filter "
    "ip6table_raw ip6table_mangle ip6table_nat ip6table_filter nf_conntrack nf_nat "
    "xt_CT xt_LOG xt_MASQUERADE xt_TCPMSS xt_comment xt_conntrack xt_mark xt_multiport "
    "xt_nat xt_tcpudp ipt_REJECT ip6t_REJECT ip6t_frag nf_log_syslog"
)


def preload() -> subprocess.Popen[bytes] | None:
    """Start loading the modules that the rules need, all in one process: wait() for it.

    The kernel would load each by itself, which in a slow guest takes three times
    as long.  None where modules cannot be loaded.
    """
    if not os.path.exists("/proc/modules"):
        return None
    try:
        return subprocess.Popen(
            ["modprobe", "-aq", *_MODULES.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def restore(backend: str, family: int) -> str:
    """The command for family 4 or 6 of backend "legacy" or "nft": `ip6tables-nft-restore` …"""
    return f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-restore"


def save(backend: str, family: int) -> str:
    """The opposite of restore()."""
    return f"{restore(backend, family).removesuffix('restore')}save"


def load(ns: str, command: str, text: str, *, keep: bool = False, strict: bool = True) -> list[str]:
    """Give text to iptables-restore in ns; what the kernel lacks, such as "SYNPROXY target".

    keep adds to the rules that are there.  With strict, or if no lack explains
    the failure, NetworkError; else the rules that cannot be had are left out.
    """
    argv = [command, "-w", "20"] + (["--noflush"] if keep else [])
    done = run_in(ns, argv, text=text, check=False)
    if done.returncode == 0:
        return []
    said = " / ".join(done.stderr.split("\n")).strip(" /")
    absent = _absent(ns, command, text)
    if not absent:
        raise NetworkError(f"{command} in {ns} refused the rules: {said}")
    names = [name for name, _ in absent]
    if strict:
        raise NetworkError(
            f"this kernel has no {', '.join(names)} for {command.removesuffix('-restore')}: "
            "use the lab VM, or a network that is not strict"
        )
    lacking = [rule for _, rules in absent for rule in rules]
    kept = [line for line in text.splitlines() if line not in lacking]
    kept = _without_tables(kept, {name.split()[0] for name in names if name.endswith(" table")})
    run_in(ns, argv, text="\n".join(kept) + "\n")
    return names


def _absent(ns: str, command: str, text: str) -> list[tuple[str, list[str]]]:
    """(what is absent, the rules that need it), by trying each in a chain nothing jumps to."""
    table = ""
    chains = set(re.findall(r"^:(\S+)", text, re.MULTILINE))
    uses: dict[tuple[str, str, str], list[str]] = {}
    tables: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            tables.append(table)
        elif line.startswith(("-A", "-I")):
            # What stands inside quotes is somebody's words, not an option.
            for kind, name in _USES.findall(re.sub(r'"[^"]*"', '""', line)):
                if name not in _STANDARD and name not in chains:
                    uses.setdefault((table, kind, name), []).append(line)
    gone = [t for t in tables if not _loads(ns, command, f"*{t}\nCOMMIT\n")]
    found = [(f"{t} table", [""]) for t in gone]
    for (table, kind, name), lines in uses.items():
        if table in gone:
            continue
        # A rule may need two things: blame the one that fails in all of them.
        if not any(_loads(ns, command, _trial(table, line, chains)) for line in lines):
            word = "target" if kind == "j" else "match"
            found.append((f"{name} {word} ({table} table)", lines))
    return found


def _trial(table: str, line: str, chains: set[str]) -> str:
    # "-A CHAIN REST" or "-I CHAIN 1 REST"; the chains it may jump to are not there.
    rest = re.sub(r"^-[AI] \S+ (\d+ )?", "", line)
    for chain in chains:
        rest = rest.removesuffix(f" -j {chain}")
    return f"*{table}\n:IPT-TRIAL - [0:0]\n-A IPT-TRIAL {rest}\nCOMMIT\n"


def _loads(ns: str, command: str, text: str) -> bool:
    argv = [command, "-w", "20", "--noflush"]
    worked = run_in(ns, argv, text=text, check=False).returncode == 0
    if worked and "IPT-TRIAL" in text:
        table = text.split("\n", 1)[0]
        run_in(ns, argv, text=f"{table}\n-F IPT-TRIAL\n-X IPT-TRIAL\nCOMMIT\n")
    return worked


def _without_tables(lines: list[str], gone: set[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for line in lines:
        if line.startswith("*"):
            skip = line[1:] in gone
        if not skip:
            kept.append(line)
    return kept
