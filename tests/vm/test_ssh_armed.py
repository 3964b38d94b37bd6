# SPDX-License-Identifier: GPL-2.0-only
"""Another host over a real ssh, with an agent that really arms.

The other host is this guest: the test starts an sshd at the other end of a pipe, so that
nothing listens on the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ipttrace.lab import traffic
from ipttrace.trace.row import FIELDS
from tests.lab.scenarios import COUNT
from tests.program import PROGRAM, Command, summary
from tests.vm.conftest import SHARED, kprobes
from tests.vm.plain import LOOPBACK, Plain

SSHD = "/usr/sbin/sshd"
RULES = """*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -p tcp -j DROP
-A INPUT -p icmp -j ACCEPT
COMMIT
"""


@pytest.fixture
def client(tmp_path: Path) -> str:
    """A PATH with an ssh that knows only the host `far`."""
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("needs openssh-client and openssh-server")
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd requires it
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n"
    )
    (folder / "config").write_text(
        f"Host far\nProxyCommand setsid {SSHD} -i -f {folder}/sshd_config -E {folder}/sshd.log\n"
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nBatchMode yes\nUser root\n"
        "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    ssh = folder / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    ssh.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@SHARED
def test_pings_on_another_host_are_traced_over_ssh_and_nothing_stays_armed(
    client: str, tmp_path: Path
) -> None:
    rows = 4 * COUNT  # requests and answers, each in OUTPUT and INPUT
    with Plain() as plain:
        plain.load(RULES, 4)
        arguments = ["print", "--ssh", "far", "--remote-command", PROGRAM, "--engine", "kernel"]
        arguments += ["--netns", plain.name, "--format", "jsonl", "--count", str(rows)]
        arguments += ["--ready-file", str(tmp_path / "ready"), "icmp"]
        argv = ["env", f"PATH={client}", PROGRAM, *arguments]
        # GIVEN an armed agent on that host, over ssh
        with Command(tmp_path, [], argv=argv) as command:
            command.wait_ready()
            assert kprobes()
            # WHEN 23 pings are sent there
            assert traffic.ping(plain.name, LOOPBACK[4], COUNT).received == COUNT
            status, out = command.finish()
            shown, _records = summary(command.stderr())
        found = [json.loads(line) for line in out.splitlines()]
        # THEN the rows arrive here, each with the rule that its packet hit
        assert (status, shown, len(found)) == (0, rows, rows)
        assert {tuple(row) for row in found} == {FIELDS}
        assert Counter(
            (row["hook"], row["chain"], row["rulenum"], row["match"], row["icmp"], row["verdict"])
            for row in found
        ) == {
            ("OUTPUT", "OUTPUT", 1, "policy", "8/0", "ACCEPT"): COUNT,
            ("INPUT", "INPUT", 2, "rule", "8/0", "ACCEPT"): COUNT,
            ("OUTPUT", "OUTPUT", 1, "policy", "0/0", "ACCEPT"): COUNT,
            ("INPUT", "INPUT", 2, "rule", "0/0", "ACCEPT"): COUNT,
        }
        assert {row["netns"] for row in found} == {plain.inode}
    # AND nothing is left on that host
    assert not kprobes()
