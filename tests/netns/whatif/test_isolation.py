# SPDX-License-Identifier: GPL-2.0-only
"""A copy has no rights over the host and no way out, and nothing is left of it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.whatif.copy.running import running
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot.model import Ruleset
from tests.netns.whatif.copies import ROUTER, need_namespaces, whatif, write
from tests.paths import PROJECT

PACKET = "tcp 10.1.0.2:40000 > 10.2.0.2:443 in lan0 syn"
PATIENCE = 60.0  # s
HOLDS = """\
import sys
from tests.netns.whatif.copies import ROUTER
from ipttrace.whatif.copy.running import running
with running(ROUTER) as copy:
    copy.ask("trace")
    print("ready", flush=True)
    sys.stdin.read()
"""


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def test_nothing_is_left_of_a_killed_copy() -> None:
    need_namespaces()
    # GIVEN a copy with its agent
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pids = descendants(process.pid)
        assert len(pids) >= 3
        fds = [os.pidfd_open(pid) for pid in pids]
        # WHEN the program is killed
        process.send_signal(signal.SIGKILL)
        # THEN all processes end, and with them the namespaces, which have no other reference
        for fd in fds:
            ended, _, _ = select.select([fd], [], [], PATIENCE)
            assert ended
            os.close(fd)


def test_the_copy_has_only_its_own_devices() -> None:
    need_namespaces()
    with running(ROUTER) as copy:
        inner = copy.run(["ip", "-o", "link"]).output
        outer = copy.run(["ip", "-n", "outside", "-o", "link"]).output
    names = [re.findall(r"^\d+: ([^:@]+)", text, re.MULTILINE) for text in (inner, outer)]
    assert names == [["lo", "lan0", "wan0"], ["lo", "lan0", "wan0"]]


def test_programs_in_the_copy_cannot_use_the_hosts_files_or_start_others() -> None:
    need_namespaces()
    with running(ROUTER) as copy:
        secret = copy.run(["cat", "/etc/shadow"])
        assert secret.status != 0
        assert secret.output == ""
        assert copy.run(["touch", "/etc/ipttrace-was-here"]).status != 0
        started = copy.run(["sh", "-c", "/bin/true & echo started"])
    assert not Path("/etc/ipttrace-was-here").exists()
    if os.geteuid() == 0:  # an ordinary user's other processes may count
        assert "started" not in started.output


def bomb(levels: int, width: int) -> str:
    """Chains whose paths double, and double again, at each level."""
    lines = ["table ip bomb {"]
    for level in reversed(range(levels)):
        lines.append(f"chain c{level} {{")
        lines += [f"jump c{level + 1}"] * width if level + 1 < levels else ["accept"]
        lines.append("}")
    lines.append("chain base { type filter hook forward priority 0; jump c0; }")
    return "\n".join([*lines, "}"]) + "\n"


def test_a_billion_paths_end_in_an_answer_or_one_clear_line(folder: Path) -> None:
    said = whatif("--network", write(folder, ROUTER, ("nft", bomb(15, 4))), PACKET)
    if said.status == 1:
        assert said.errors.count("\n") == 1
        assert said.errors.startswith("ipttrace: nft: nft ")
    else:
        assert said.status == 0


@pytest.mark.parametrize(
    "text",
    [
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j \x1b[2J\nCOMMIT\n",
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m no-such-match -j DROP\nCOMMIT\n",
        "*filter\n:FORWARD ACCEPT [0:0]\n-A MISSING -j DROP\nCOMMIT\n",
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m ../../../tmp/evil -j DROP\nCOMMIT\n",
    ],
)
def test_rules_that_are_wrong_are_refused_in_one_line(text: str) -> None:
    need_namespaces()
    snapshot = ROUTER.__class__(
        devices=ROUTER.devices, rulesets=(Ruleset("iptables-nft", text, "f"),)
    )
    with pytest.raises(WhatIfError, match="f: iptables-nft-restore refuses the rules") as caught, \
            running(snapshot):  # fmt: skip
        pass
    assert str(caught.value).isprintable()


def test_names_with_escapes_are_cleaned(folder: Path) -> None:
    rules = (
        "*filter\n:FORWARD ACCEPT [0:0]\n"
        '-A FORWARD -m comment --comment "\x1b[31mred\u202e" -j DROP\nCOMMIT\n'
    )
    said = whatif("--network", write(folder, ROUTER, ("iptables-nft", rules)), PACKET)
    assert said.status == 3
    assert "\x1b" not in said.answer["rule"]
    assert "red" in said.answer["rule"]
