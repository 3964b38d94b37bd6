# SPDX-License-Identifier: GPL-2.0-only
"""Another host over a real ssh, whose agent really arms: nothing stands in for either.

The other host is this guest, by an sshd of its own on the other end of a pipe, so that
nothing listens anywhere.
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
from tests.vm.commands import PROGRAM, Command
from tests.vm.conftest import kprobes
from tests.vm.plain import LOOPBACK, Plain
from tests.vm.test_commands import summary

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
    """A PATH whose ssh reaches the host `far`, and no other."""
    if not os.uname().release.startswith("6.1."):
        pytest.skip("on one kernel: the way to it is the same, and under emulation takes long")
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("needs openssh-client and openssh-server")
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # it wants one, and nothing in it
    place = tmp_path / "ssh"
    place.mkdir()
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True
        )
    (place / "sshd_config").write_text(
        f"HostKey {place}/host_key\nAuthorizedKeysFile {place}/key.pub\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n"
    )
    (place / "config").write_text(
        f"Host far\nProxyCommand setsid {SSHD} -i -f {place}/sshd_config -E {place}/sshd.log\n"
        f"IdentityFile {place}/key\nIdentitiesOnly yes\nBatchMode yes\nUser root\n"
        "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    ssh = place / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {place}/config "$@"\n')
    ssh.chmod(0o755)
    return f"{place}:{os.environ['PATH']}"


def test_pings_of_another_host_are_traced_over_ssh_and_nothing_stays_armed_there(
    client: str, tmp_path: Path
) -> None:
    rows = 4 * COUNT  # request and answer, each in OUTPUT and INPUT
    with Plain() as plain:
        plain.load(RULES, 4)
        arguments = ["print", "--ssh", "far", "--remote-command", PROGRAM, "--engine", "kernel"]
        arguments += ["--netns", plain.name, "--format", "jsonl", "--count", str(rows)]
        arguments += ["--ready-file", str(tmp_path / "ready"), "icmp"]
        argv = ["env", f"PATH={client}", PROGRAM, *arguments]
        # GIVEN an agent there that is armed, over ssh
        with Command(tmp_path, [], argv=argv) as command:
            command.wait_ready()
            assert kprobes()
            # WHEN 23 pings are sent there
            assert traffic.ping(plain.name, LOOPBACK[4], COUNT).received == COUNT
            status, out = command.finish()
            shown, _records = summary(command.stderr())
        found = [json.loads(line) for line in out.splitlines()]
        # THEN the rows are those, here, each with the rule that its packet hit
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
    # AND with its end there is nothing left there
    assert not kprobes()
