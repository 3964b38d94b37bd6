# SPDX-License-Identifier: GPL-2.0-only
"""A small router as a snapshot, and whatif as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ipttrace.whatif.snapshot.model import Device, Ruleset, Snapshot
from tests.paths import PROJECT

LAN = Device("lan0", 2, mac="02:00:00:00:01:01", addresses=("10.1.0.1/24", "fd00:1::1/64"))
WAN = Device("wan0", 3, mac="02:00:00:00:02:01", addresses=("10.2.0.1/24", "fd00:2::1/64"))
ROUTER = Snapshot(
    devices=(LAN, WAN),
    routes={4: ("default via 10.2.0.2 dev wan0",), 6: ("default via fd00:2::2 dev wan0",)},
    neighbours=(
        ("10.1.0.2", "lan0", "02:00:00:00:01:02"),
        ("10.2.0.2", "wan0", "02:00:00:00:02:02"),
    ),
    sysctls={"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"},
)


@dataclass(frozen=True)
class Said:
    """What whatif printed: its exit status, rows, the answer, errors."""

    status: int
    rows: list[dict[str, Any]]
    answer: dict[str, Any]
    errors: str

    @property
    def path(self) -> list[tuple[str, str, int | None, str, str | None]]:
        """Table, deciding chain, number, match and verdict of each row."""
        return [
            (one["table"], one["chain"], one["rulenum"], one["match"], one["verdict"])
            for one in self.rows
        ]


@cache
def why_not() -> str:
    """Why no copy can be made here, "" if one can."""
    done = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def need_namespaces() -> None:
    if reason := why_not():
        pytest.skip(f"no user namespaces: {reason}")


def whatif(*arguments: str, user: int | None = None, **files: str) -> Said:
    """Runs whatif; `user`: as this user, without any group."""
    need_namespaces()
    argv = [sys.executable, "-m", "ipttrace", "whatif", "--format", "jsonl", *arguments]
    if user is not None:
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HOME": "/nonexistent"}
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd="/", env=environment, stdin=subprocess.DEVNULL
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    answer = found.pop()["answer"] if found else {}
    return Said(done.returncode, found, answer, done.stderr)


def write(folder: Path, snapshot: Snapshot, *rulesets: tuple[str, str]) -> str:
    """Writes a snapshot with these rules, kind and text; returns the file's path."""
    rules = tuple(Ruleset(kind, text, kind) for kind, text in rulesets)
    whole = Snapshot(
        devices=snapshot.devices,
        routes=snapshot.routes,
        rules=snapshot.rules,
        neighbours=snapshot.neighbours,
        sysctls=snapshot.sysctls,
        rulesets=(*snapshot.rulesets, *rules),
    )
    path = folder / "network.json"
    path.write_text(whole.to_json())
    path.chmod(0o644)
    return str(path)
