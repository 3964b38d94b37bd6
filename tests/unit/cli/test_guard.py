# SPDX-License-Identifier: GPL-2.0-only
"""Rules that are wrong are refused in a line that shows the word, before anything is attached."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipttrace.cli import main


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["deny connekt"], '"connekt" is none of connect, accept, receive'),
        (["deny", "connect", "to", "10.0.0.300"], '"10.0.0.300" is no address'),
        (["/none/at/all"], "/none/at/all: No such file or directory; rules in words begin with"),
        (["/no\x1b[2Jne"], "/no\\x1b[2Jne: No such file"),
        (["/etc"], "/etc: Is a directory"),
        (["/dev/zero"], "/dev/zero is longer than 1,048,576 bytes"),
        ([""], "there are no rules"),
        (["deny"], "connect, accept or receive is missing"),
    ],
)
def test_wrong_rules_are_bad_usage(
    rules: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["guard", *rules]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ipttrace: {message}")
    assert err.count("\n") in (1, 3)


def test_of_a_file_the_line_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules"
    rules.write_bytes(b"# first\ndeny accept on port 22\n  deny accept on port \xff\n")
    assert main(["guard", str(rules)]) == 2
    first, line, caret = capsys.readouterr().err.splitlines()
    assert first.startswith(f"ipttrace: {rules}:3: ")
    assert "is no port" in first
    assert line.startswith("    deny accept on port ")
    assert caret.index("^") == len("    deny accept on port ")


def test_without_root_the_guard_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["guard", "deny connect"]) == 1
    assert capsys.readouterr().err == "ipttrace: the guard needs root\n"
