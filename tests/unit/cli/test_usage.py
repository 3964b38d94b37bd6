# SPDX-License-Identifier: GPL-2.0-only
"""Bad usage is one clear line and exit status 2, whichever command it is given to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.cli import main


@pytest.mark.parametrize("command", [["print"], ["record", "/dev/null"], ["agent"]])
def test_a_bad_expression_is_bad_usage(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "tcp", "prot"]) == 2
    said = capsys.readouterr()
    assert "syntax error" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["print", "--count", "0"],
        ["print", "--duration", "-1"],
        ["print", "--format", "xml"],
        ["print", "--max-rate", "0"],
        ["record", "trace", "--stop-after", "some"],
        ["agent", "--max-rate", "1e3"],
        ["agent", "--until", "verdict=DROP"],
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", [["print"], ["record", "trace"]])
def test_until_a_query_that_is_none_is_bad_usage_before_anything_starts(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # GIVEN a place where a file would be seen
    monkeypatch.chdir(tmp_path)
    # WHEN --until cannot be understood
    assert main([*command, "--until", "verdict=DROP and sprot=53"]) == 2
    # THEN it says where, and nothing was begun
    line, text, caret = capsys.readouterr().err.splitlines()
    assert line.startswith("ipttrace: there is no field sprot")
    assert text[caret.index("^") :].startswith("sprot")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["print", "record", "agent"])
def test_help_tells_every_way_to_end(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert "--max-rate N" in said
    assert "--stop-after N" in said
    assert ("--until QUERY" in said) == (command != "agent")
