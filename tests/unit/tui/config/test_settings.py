# SPDX-License-Identifier: GPL-2.0-only
"""What a config file may hold, and what is said about everything else."""

from __future__ import annotations

import pytest

from ipttrace.tui.config.settings import Known, Settings, settings_of
from ipttrace.tui.config.toml import ConfigError

KNOWN = Known(
    themes=("nord", "dracula"),
    columns=("time", "rule", "verdict"),
    actions=("help", "quit"),
    roles=("drop", "accept"),
)


def test_an_empty_file_is_the_default() -> None:
    assert settings_of(b"", "c", KNOWN) == Settings()


def test_all_that_a_file_may_hold() -> None:
    text = b"""
        theme = "nord"
        [columns]
        shown = ["verdict", "rule"]
        widths = { rule = 40 }
        [keys]
        help = "F5"
        quit = ["x", "Ctrl-X"]
        [colours]
        drop = "red"
    """
    assert settings_of(text, "c", KNOWN) == Settings(
        theme="nord",
        columns=(("verdict", None), ("rule", 40)),
        keys={"help": ("F5",), "quit": ("x", "Ctrl-X")},
        colours={"drop": "red"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('theme = "nrod"', '1: no theme "nrod"; did you mean "nord"?'),
        ("theme = 3", '1: theme must be a name; write theme = "nord"'),
        ('\ncolour = "x"', '2: no setting "colour"; did you mean "colours"?'),
        ("[colums]\nx = 1", '1: no setting "colums"; did you mean "columns"?'),
        ("columns = 3", "1: columns must be a table; write a line [columns]"),
        (
            '[columns]\nshow = ["time"]',
            '2: no setting of columns "show"; did you mean "shown"?',
        ),
        (
            '[columns]\nshown = "time"',
            '2: shown must be a list of names; write shown = ["time", "verdict"]',
        ),
        (
            '[columns]\nshown = [\n  "time",\n  "verdit",\n]',
            '4: no column "verdit"; did you mean "verdict"?',
        ),
        (
            '[columns]\nshown = ["time", "x\\u001b[2J"]',
            '2: no column "x\\x1b[2J"; use one of time, rule, verdict',
        ),
        (
            '[columns]\nshown = ["time", "time"]',
            '2: column "time" is listed twice; remove one',
        ),
        (
            '[columns]\nshown = ["time"]\nwidths = { time = 0 }',
            '3: the width of "time" must be a whole number from 1 to 200',
        ),
        (
            '[columns]\nshown = ["time"]\nwidths = { time = true }',
            '3: the width of "time" must be a whole number from 1 to 200',
        ),
        (
            "[columns]\nwidths = { time = 9 }",
            "2: widths need the columns in shown; add shown = [...]",
        ),
        ('[keys]\nhelpp = "x"', '2: no action "helpp"; did you mean "help"?'),
        ("[keys]\nhelp = 1", '2: help must be a key or a list of keys; write help = "x"'),
        ("[keys]\nhelp = []", '2: help must be a key or a list of keys; write help = "x"'),
        ('[colours]\ndorp = "red"', '2: no colour "dorp"; did you mean "drop"?'),
        ("[colours]\ndrop = 1", '2: drop must be a colour; write drop = "red" or "#ff5555"'),
    ],
)
def test_a_mistake_is_one_line_that_says_where_what_and_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(text.encode(), "/c.toml", KNOWN)
    assert str(error.value) == f"/c.toml:{message}"
