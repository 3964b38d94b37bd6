# SPDX-License-Identifier: GPL-2.0-only
"""The ssh session through which rules are given is found, and rules that would cut it off."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.guard.conditions import number_of
from ipttrace.guard.rules import parse
from ipttrace.guard.session import Session, cut_off_by, find

CLIENT, SERVER = "198.51.100.5", "192.0.2.7"
SESSION = Session(number_of(CLIENT), 50000, number_of(SERVER), 22)


def process(proc: Path, pid: int, parent: int, environment: bytes) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "environ").write_bytes(environment)
    (folder / "stat").write_bytes(b"%d (a) S 7 (b) S %d 1 1" % (pid, parent))


def test_the_session_is_that_of_a_shell_above(tmp_path: Path) -> None:
    # GIVEN sudo, which keeps little of the environment, below a shell
    value = f"SSH_CONNECTION={CLIENT} 50000 {SERVER} 22"
    process(tmp_path, 40, 30, b"PATH=/bin\0")
    process(tmp_path, 30, 20, b"A=B\0" + value.encode() + b"\0")
    assert find(40, tmp_path) == SESSION
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
