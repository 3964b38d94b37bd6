# SPDX-License-Identifier: GPL-2.0-only
"""--netns all on a host with more namespaces than a process usually has descriptors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.netns.loopback import HANG, LEGACY, ROWS, LoopbackNamespace
from tests.program import PROGRAM, Command

NAMESPACES = 100
# Before the agent starts: 1,100 descriptors are open, so that all of the agent's are above
# what select(2) knows, and few more allowed.
FEW = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (1150, hard))
for _ in range(1100):
    os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.alone
def test_more_namespaces_than_descriptors_allowed_are_all_traced(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1250 + 10 * NAMESPACES:
        pytest.skip("the hard limit of descriptors is too low here")
    names = [f"many{number}" for number in range(NAMESPACES)]
    commands = "".join(f"netns add {name}\n" for name in names)
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
    stream = tmp_path / "stream"
    argv = [sys.executable, "-c", FEW, PROGRAM, "agent", "--engine", "netlink", "--netns", "all"]
    argv += ["--ready-file", str(tmp_path / "ready")]
    with LoopbackNamespace() as namespace, stream.open("wb") as out:
        namespace.run("iptables-legacy-restore", text=LEGACY)
        with Command(tmp_path, [], argv=argv, stdout=out) as command:
            command.wait_ready()
            # THEN each namespace has the table that marks packets
            for name in (names[0], names[-1]):
                listing = ["ip", "netns", "exec", name, "nft", "list", "tables"]
                done = subprocess.run(listing, capture_output=True, check=True)
                assert b"ipttrace" in done.stdout
            namespace.send(23)
            namespace.wait_read()
            command.interrupt()
            assert (command.process.wait(HANG), command.stderr()) == (130, [])
    # AND there are rows with their rules' texts
    argv = [PROGRAM, "replay", str(stream), "--format", "jsonl"]
    lines = subprocess.run(argv, capture_output=True, check=True).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert Counter(row["table"] for row in rows) == {"t": ROWS * 23, "filter": ROWS * 23}
    texts = Counter(row["rule"] for row in rows if row["match"] == "rule")
    assert sorted(texts.values()) == [23, 23]
