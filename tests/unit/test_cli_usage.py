# SPDX-License-Identifier: GPL-2.0-only
"""Bad usage is one clear line and exit status 2, whichever command it is given to."""

from __future__ import annotations

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
    [["print", "--count", "0"], ["print", "--duration", "-1"], ["print", "--format", "xml"]],
)
def test_an_option_that_makes_no_sense_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
