# SPDX-License-Identifier: GPL-2.0-only
"""Bad usage is one clear line and exit status 2, for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.cli import agent, main, options, record


@pytest.mark.parametrize("command", [["print"], ["record", "/dev/null"], ["agent"]])
def test_a_bad_expression_is_bad_usage(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "tcp", "prot"]) == 2
    output = capsys.readouterr()
    assert "syntax error" in output.err
    assert output.out == ""


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
def test_an_invalid_option_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", [["print"], ["record", "trace"], ["agent"]])
def test_what_rules_mark_excludes_a_filter(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--from-rules", "tcp", "port", "443"]) == 2
    assert capsys.readouterr().err == (
        "ipttrace: --from-rules traces what rules mark: give no EXPR with it\n"
    )


@pytest.mark.parametrize("command", [["print"], ["record", "trace"]])
def test_an_invalid_query_for_until_is_bad_usage_before_anything_starts(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # GIVEN an empty folder
    monkeypatch.chdir(tmp_path)
    # WHEN --until has an unknown field
    assert main([*command, "--until", "verdict=DROP and sprot=53"]) == 2
    # THEN the message shows where, and no file was created
    line, query, caret = capsys.readouterr().err.splitlines()
    assert line.startswith("ipttrace: there is no field sprot")
    assert query[caret.index("^") :].startswith("sprot")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["print", "record", "agent"])
def test_help_lists_every_option_that_ends_a_run(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "--max-rate N" in text
    assert "--stop-after N" in text
    assert ("--until QUERY" in text) == (command != "agent")


@pytest.mark.parametrize("asked", [[], ["--raw-addresses"]])
def test_the_agent_keeps_addresses_only_if_asked_to(asked: list[str]) -> None:
    # print, record and the screen start agents so, here and by ssh
    parsed = record.build_parser().parse_args(["trace", "--netns", "web", *asked])
    arguments = options.agent_arguments(parsed)
    assert agent.build_parser().parse_args(arguments).raw_addresses == bool(asked)


def test_a_file_that_cannot_be_opened_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["export", "/no/such"], ["replay", "/no/such"], ["record", "/no/such/file"]):
        assert main(command) == 1
        output = capsys.readouterr()
        assert output.err == f"ipttrace: {command[1]}: No such file or directory\n"
        assert output.out == ""


def test_a_stream_is_not_recorded_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: True)
    for command in (["record", "-"], ["demo", "--record", "-"], ["agent"]):
        assert main(command) == 2
        message = "ipttrace: refusing to write the stream to a terminal; redirect stdout\n"
        assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--count", "x"], 'ipttrace: --count: "x" is not a whole number of 1 or more'),
        (["--duration", "-1"], 'ipttrace: --duration: "-1" is not a positive number of seconds'),
        (["--buffer", "1x"], 'ipttrace: --buffer: "1x" is not a size'),
        (["--buffer", "1k"], 'ipttrace: --buffer: "1k" is too small; the minimum is 64k'),
        (["--format", "cvs"], "ipttrace: --format: no such choice: 'cvs'"),
    ],
)
def test_an_invalid_value_is_described_in_the_words_of_the_help(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["print", *arguments])
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.endswith("(see ipttrace print --help)\n")


def test_the_help_of_lab_says_how_to_run_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lab", "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert usage.endswith("[-- COMMAND ...]")
    assert "runs COMMAND as root in the VM" in rest
