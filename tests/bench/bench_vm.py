# SPDX-License-Identifier: GPL-2.0-only
"""What tracing costs a guest, measured in the lab VM, and the time to the first row.

Two virtual CPUs under an emulator: only ratios within a run are meaningful, not
absolute rates.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import Kernel, ensure
from ipttrace.lab.vm.machine import Machine
from tests.bench import guarded
from tests.bench.first_row import first_row
from tests.paths import PROJECT

KERNEL = "6.1"
GOALS = {
    "filter that matches nothing": 0.90,
    "all matched and read": 0.40,
    "bpf: filter that matches nothing": 0.90,
    "bpf: all matched and read": 0.45,
    "delivered, drops: filter that matches nothing": 0.90,
    "nft, bpf: filter that matches nothing": 0.90,
    "nft, bpf: all matched and read": 0.50,
    guarded.GUARDED: 0.95,
    guarded.GUARDED_CONNECTIONS: 0.95,
    guarded.STAGED: 0.95,
    guarded.STAGED_CONNECTIONS: 0.95,
}

# What is compared with something else than the first variant, by how its names begin.
BASES = {
    "delivered": "delivered, untraced",
    "packets": guarded.UNGUARDED,
    "connections": guarded.CONNECTIONS,
}

# Whose instructions a record are counted, and what they are called.
AGENTS = {
    "all matched and read": "agent",
    "bpf: all matched and read": "agent, bpf",
    "nft, bpf: all matched and read": "agent, nft, bpf",
    "nft, netlink: all matched and read": "agent, nft, netlink",
}

Figures = dict[str, dict[str, Any]]


def _bare(kernel: Kernel, folder: Path) -> Path:
    """Builds the reference module for the kernel in `folder`; returns its path."""
    shutil.copytree(PROJECT / "tests" / "bench" / "kmod", folder, dirs_exist_ok=True)
    subprocess.run(
        ["make", "-s", "-C", str(kernel.headers), f"M={folder}", "modules"],
        check=True,
        capture_output=True,
    )
    return folder / "bare.ko"


def _in_guest(*options: str) -> Any:
    """Runs tests.bench.guest in the VM with these options; returns its result."""
    kernel = ensure(KERNEL)
    kmod.build(kernel.headers, kernel.release)
    with tempfile.TemporaryDirectory(prefix="ipttrace-bench-") as work:
        module = _bare(kernel, Path(work))
        command = [sys.executable, "-m", "tests.bench.guest", str(module), *options]
        machine: dict[str, Any] = {}
        if "--counted" in options:
            machine = {"counted": True, "cpus": 1, "accel": "tcg"}
        with tempfile.TemporaryFile() as out:
            status = Machine(kernel, command, cwd=PROJECT, stdout=out, **machine).run()
            out.seek(0)
            output = out.read().decode()
    if status:
        raise SystemExit(f"the benchmark in the guest failed with exit status {status}")
    return json.loads(output)


def _costs(*options: str) -> Figures:
    result = _in_guest(*options)
    figures: Figures = {}
    base = "nft, untraced" if options else "untraced"
    for kind, rate in result["rates"].items():
        figures[f"vm: {kind}, {base}"] = {"value": round(rate), "unit": "packets/s", "goal": ""}
        for name, ratios in result["ratios"].items():
            figures[f"vm: {kind}, {name}"] = {
                "value": round(ratios[kind], 2),
                "unit": "of untraced",
                "goal": f">= {GOALS[name]:.2f}" if name in GOALS else "",
            }
    for name, ratios in result["ratios"].items():
        if "delivered" in ratios:
            figures[f"vm: {name}: delivered"] = {
                "value": round(ratios["delivered"], 3),
                "unit": "of due",
                "goal": "",
            }
    return figures


def _counts() -> Figures:
    """Returns the same costs in instructions, which do not depend on the host's load."""
    return {**_counts_of("untraced"), **_counts_of("nft, untraced", "--nft")}


def _counts_of(base_name: str, *options: str) -> Figures:
    result = _in_guest("--counted", *options)
    costs, extra = result["costs"], result["extra"]
    figures: Figures = {}
    for name, cost in costs.items():
        untraced = BASES.get(name.split(",")[0], base_name)
        figures[f"vm: instructions, {name}"] = {
            "value": round(cost),
            "unit": "a connection" if name.startswith("connections") else "a packet",
            "goal": "",
        }
        if name != untraced:
            figures[f"vm: instructions, {name}, ratio"] = {
                "value": round(costs[untraced] / cost, 3),
                "unit": "of untraced",
                "goal": f">= {GOALS[name]:.2f}" if name in GOALS else "",
            }
    for name, label in AGENTS.items():
        key = f"{name}: agent, a record"
        if key in extra:
            figures[f"vm: instructions, {label}"] = {
                "value": round(extra[key]),
                "unit": "a record",
                "goal": "",
            }
    return figures


def _first_row() -> Figures:
    seconds = first_row("lab", "--kernel", KERNEL)
    return {"vm: first row": {"value": round(seconds, 1), "unit": "s", "goal": "<= 40"}}


def run() -> Figures:
    """Returns the figures by name: value, unit, goal."""
    return {**_first_row(), **_counts(), **_costs(), **_costs("--nft")}


if __name__ == "__main__":
    for name, figure in run().items():
        print(name, figure["value"], figure["unit"], figure["goal"])
