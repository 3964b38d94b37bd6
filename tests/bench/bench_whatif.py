# SPDX-License-Identifier: GPL-2.0-only
"""How long `ipttrace whatif` takes, from its start to its end: rules copied, a packet answered.

On the demo's router (as root, live), and with 10,000 rules from a file (no root).  Run it, or
call `run`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from ipttrace.lab.demo.network import DemoNetwork
from ipttrace.lab.network import addresses as at
from tests.netns.whatif.copies import ROUTER
from tests.paths import PROJECT

ROUNDS: Final = 5
RULES: Final = 10_000
PACKET: Final = f"tcp {at.CLIENT4}:40000 > {at.SERVER4}:443 in lan0 syn"

Results = dict[str, dict[str, Any]]


def _seconds(*arguments: str) -> float:
    """The best of some runs, in s."""
    argv = [sys.executable, "-m", "ipttrace", "whatif", *arguments, PACKET]
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        done = subprocess.run(
            argv, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(PROJECT)}
        )
        best = min(best, time.perf_counter() - began)
        if done.returncode not in (0, 3):
            raise SystemExit(f"whatif failed with exit status {done.returncode}")
    return best


def _many(folder: Path) -> list[str]:
    """Options: a router with RULES rules, none of which the packet matches."""
    lines = [f"-A FORWARD -s 10.{n >> 8 & 255}.{n & 255}.9/32 -j DROP" for n in range(RULES)]
    text = "\n".join(["*filter", ":FORWARD ACCEPT [0:0]", *lines, "COMMIT", ""])
    rules, network = folder / "rules", folder / "network.json"
    rules.write_text(text)
    network.write_text(ROUTER.to_json())
    return ["--rules", str(rules), "--network", str(network)]


def run() -> Results:
    """Returns the figures by name: value, unit, goal."""
    figures: Results = {}
    with tempfile.TemporaryDirectory(prefix="ipttrace-bench-") as folder:
        many = _seconds(*_many(Path(folder)))
    figures["whatif: 10,000 rules"] = {"value": round(many, 2), "unit": "s", "goal": "<= 5"}
    if os.geteuid() == 0:
        with DemoNetwork() as network:
            live = _seconds("--netns", network.router)
        figures["whatif: the demo's router"] = {
            "value": round(live, 2),
            "unit": "s",
            "goal": "<= 3",
        }
    return figures


if __name__ == "__main__":
    for name, figure in run().items():
        print(name, figure["value"], figure["unit"], figure["goal"])
