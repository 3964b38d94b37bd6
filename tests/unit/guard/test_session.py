# SPDX-License-Identifier: GPL-2.0-only
"""The ssh session through which rules are given is found, and rules that would cut it off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipttrace.capture.containers import Container
from ipttrace.guard.conditions import number_of
from ipttrace.guard.rules import parse
from ipttrace.guard.session import Session, cut_off_by, find

CLIENT, SERVER = "198.51.100.5", "192.0.2.7"
SESSION = Session(
    number_of(CLIENT),
    50000,
    number_of(SERVER),
    22,
    uids=(0, 1000),
    containers=(Container(unit="ssh.service"),),
)


def process(proc: Path, pid: int, parent: int, environment: bytes) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "environ").write_bytes(environment)
    (folder / "cgroup").write_text("0::/system.slice/ssh.service\n")
    (folder / "stat").write_bytes(b"%d (a) S 7 (b) S %d 1 1" % (pid, parent))


def test_the_session_is_that_of_a_shell_above(tmp_path: Path) -> None:
    # GIVEN sudo, which keeps little of the environment, below a shell
    value = f"SSH_CONNECTION={CLIENT} 50000 {SERVER} 22"
    process(tmp_path, 40, 30, b"PATH=/bin\0")
    process(tmp_path, 30, 20, b"A=B\0" + value.encode() + b"\0")
    found = find(40, tmp_path)
    assert found is not None
    assert replace(found, uids=SESSION.uids, containers=SESSION.containers) == SESSION
    assert set(found.uids) == {0, tmp_path.stat().st_uid}
    # WHEN there is none, or it says nothing that can be understood
    process(tmp_path, 50, 1, b"SSH_CONNECTION=x y z 22\0")
    process(tmp_path, 60, 61, b"")
    assert find(50, tmp_path) is find(60, tmp_path) is None


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("deny receive from 198.51.100.0/24", True),
        ("deny receive on port 22", True),
        ("deny accept on port 22", True),
        ("deny accept from any", True),
        ("deny receive tcp comm sshd", True),
        ("deny receive tcp uid 1000", True),
        ("deny receive tcp uid 1001", False),
        ("deny accept container ssh.service", True),
        ("deny accept container 3f2a", False),
        ("allow receive from 198.51.100.5; deny receive", False),
        ("deny receive udp", False),
        ("deny accept on port 23", False),
        ("deny accept on 192.0.2.8 port 22", False),
        ("deny receive tcp comm nginx", False),
        ("deny connect", False),
    ],
)
def test_rules_that_cut_it_off_are_found(text: str, cut: bool) -> None:
    found = cut_off_by(parse(text), SESSION)
    assert (found is not None) == cut
