# SPDX-License-Identifier: GPL-2.0-only
"""Loads rules into a namespace, and finds out what the kernel lacks.

One iptables-restore per namespace and family; only if that fails, each match and
target is tried on its own.  Must not depend on the meaning of the rules.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from ipttrace.lab.network.ns import NetworkError, run_in

_USE = re.compile(r"-(j|m) (\S+)")
_STANDARD = {"ACCEPT", "DROP", "RETURN", "QUEUE"}


# The modules that rules.py needs; names that a kernel lacks or has built in do no
# harm.
_MODULES: Final = (
    "veth ip_tables ip6_tables iptable_raw iptable_mangle iptable_nat iptable_filter "
    "ip6table_raw ip6table_mangle ip6table_nat ip6table_filter nf_conntrack nf_nat "
    "xt_CT xt_LOG xt_MASQUERADE xt_TCPMSS xt_comment xt_conntrack xt_mark xt_multiport "
    "xt_nat xt_tcpudp ipt_REJECT ip6t_REJECT ip6t_frag nf_log_syslog"
)


def preload() -> subprocess.Popen[bytes] | None:
    """Starts one modprobe for all modules that the rules need; the caller waits for it.

    The kernel would load them one by one, which in a slow guest takes three times
    as long.  Returns None if modules cannot be loaded.
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
    """Returns the restore command for family 4 or 6 and backend "legacy" or "nft"."""
    return f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-restore"


def save(backend: str, family: int) -> str:
    """Returns the save command; arguments as for restore()."""
    return f"{restore(backend, family).removesuffix('restore')}save"


def load(ns: str, command: str, text: str, *, keep: bool = False, strict: bool = True) -> list[str]:
    """Loads the rules in text; returns what the kernel lacks, such as "SYNPROXY target".

    command is an iptables-restore, run in the namespace ns.  keep adds to the
    existing rules.  Rules that need something missing are left out; if strict, or
    if nothing missing explains the failure, NetworkError is raised instead.
    """
    argv = [command, "-w", "20"] + (["--noflush"] if keep else [])
    done = run_in(ns, argv, text=text, check=False)
    if done.returncode == 0:
        return []
    reason = " / ".join(done.stderr.split("\n")).strip(" /")
    missing = _missing(ns, command, text)
    if not missing:
        raise NetworkError(f"{command} in {ns} rejected the rules: {reason}")
    names = [name for name, _ in missing]
    if strict:
        raise NetworkError(
            f"this kernel has no {', '.join(names)} for {command.removesuffix('-restore')}: "
            "use the lab VM, or Network(strict=False)"
        )
    unusable = [rule for _, rules in missing for rule in rules]
    kept = [line for line in text.splitlines() if line not in unusable]
    kept = _without_tables(kept, {name.split()[0] for name in names if name.endswith(" table")})
    run_in(ns, argv, text="\n".join(kept) + "\n")
    return names


def _missing(ns: str, command: str, text: str) -> list[tuple[str, list[str]]]:
    """Returns (name, rules that need it) of what is missing; tries each in an unused chain."""
    table = ""
    chains = set(re.findall(r"^:(\S+)", text, re.MULTILINE))
    uses: dict[tuple[str, str, str], list[str]] = {}
    tables: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            tables.append(table)
        elif line.startswith(("-A", "-I")):
            # Quoted text is a comment or prefix, not options.
            for kind, name in _USE.findall(re.sub(r'"[^"]*"', '""', line)):
                if name not in _STANDARD and name not in chains:
                    uses.setdefault((table, kind, name), []).append(line)
    no_tables = [t for t in tables if not _loads(ns, command, f"*{t}\nCOMMIT\n")]
    found = [(f"{t} table", [""]) for t in no_tables]
    for (table, kind, name), lines in uses.items():
        if table in no_tables:
            continue
        # A rule may use several: one is missing if all rules that use it fail.
        if not any(_loads(ns, command, _trial(table, line, chains)) for line in lines):
            word = "target" if kind == "j" else "match"
            found.append((f"{name} {word} ({table} table)", lines))
    return found


def _trial(table: str, line: str, chains: set[str]) -> str:
    # "-A CHAIN REST" or "-I CHAIN 1 REST"; the chains that it jumps to do not exist yet.
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


def _without_tables(lines: list[str], tables: set[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for line in lines:
        if line.startswith("*"):
            skip = line[1:] in tables
        if not skip:
            kept.append(line)
    return kept
