# SPDX-License-Identifier: GPL-2.0-only
"""What tracing costs the traced, measured in the lab VM; and how soon a row is there.

Two virtual CPUs under an emulator: absolute rates mean nothing, the ratios of
one run do.
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
from tests.bench.first_row import first_row
from tests.paths import PROJECT

KERNEL = "6.1"
GOALS = {"filter that matches nothing": 0.90, "all matched and read": 0.40}

Figures = dict[str, dict[str, Any]]


def _bare(kernel: Kernel, folder: Path) -> Path:
    """The yardstick module, built for the kernel into `folder`."""
    shutil.copytree(PROJECT / "tests" / "bench" / "kmod", folder, dirs_exist_ok=True)
    subprocess.run(
        ["make", "-s", "-C", str(kernel.headers), f"M={folder}", "modules"],
        check=True,
        capture_output=True,
    )
    return folder / "bare.ko"


def _in_guest(*options: str) -> Any:
    """What tests.bench.guest says, run in the VM with these options."""
    kernel = ensure(KERNEL)
    kmod.build(kernel.headers, kernel.release)
    with tempfile.TemporaryDirectory(prefix="ipttrace-bench-") as work:
        module = _bare(kernel, Path(work))
        command = [sys.executable, "-m", "tests.bench.guest", str(module), *options]
        counted: dict[str, Any] = {}
        if "--counted" in options:
            counted = {"counted": True, "cpus": 1, "accel": "tcg"}
        with tempfile.TemporaryFile() as out:
            status = Machine(kernel, command, cwd=PROJECT, stdout=out, **counted).run()
            out.seek(0)
            said = out.read().decode()
    if status:
        raise SystemExit(f"the benchmark in the guest failed ({status})")
    return json.loads(said)


def _costs() -> Figures:
    result = _in_guest()
    figures: Figures = {}
    for kind, rate in result["rates"].items():
        figures[f"vm: {kind}, untraced"] = {"value": round(rate), "unit": "packets/s", "goal": ""}
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
    """The same costs in instructions, which no other load on this machine changes."""
    result = _in_guest("--counted")
    costs, extra = result["costs"], result["extra"]
    base = costs["untraced"]
    figures: Figures = {}
    for name, cost in costs.items():
        figures[f"vm: instructions, {name}"] = {
            "value": round(cost),
            "unit": "a packet",
            "goal": "",
        }
        if name != "untraced":
            figures[f"vm: instructions, {name}, ratio"] = {
                "value": round(base / cost, 3),
                "unit": "of untraced",
                "goal": "",
            }
    figures["vm: instructions, agent"] = {
        "value": round(extra["agent, a record"]),
        "unit": "a record",
        "goal": "",
    }
    return figures


def _first_row() -> Figures:
    took = first_row("lab", "--kernel", KERNEL)
    return {"vm: first row": {"value": round(took, 1), "unit": "s", "goal": "<= 40"}}


def run() -> Figures:
    """The figures, by name: value, unit, goal."""
    return {**_first_row(), **_counts(), **_costs()}


if __name__ == "__main__":
    for name, figure in run().items():
        print(name, figure["value"], figure["unit"], figure["goal"])
