# SPDX-License-Identifier: GPL-2.0-only
"""TOML: errors with their line, and a table replaced in a user's file."""

from __future__ import annotations

import tomllib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.tui.config.toml import ConfigError, line_of, parse, with_table

TABLE = '[columns]\nshown = ["time"]\n'


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"\na = \n", 2),
        (b"a = 1\n\nb\n", 3),
        (b'a = "\xff"\n', 1),
        (b"# \n\xfe\n", 2),
        (b"[a]\n[a]\n", 2),
        (b'a = "', 1),
        (b"a = [\n1,\n", 3),
    ],
)
def test_an_error_names_the_file_and_the_line_and_is_one_line(data: bytes, line: int) -> None:
    with pytest.raises(ConfigError) as error:
        parse(data, "/c.toml")
    assert str(error.value).startswith(f"/c.toml:{line}: ")
    assert str(error.value).isprintable()


@given(st.binary(max_size=200) | st.text(alphabet='[]{}=",.\n#a1\\x', max_size=200))
def test_whatever_is_in_the_file_there_is_no_traceback(data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode()
    with suppress(ConfigError, ValueError):
        text, _ = parse(raw, "c")
        line_of(text, "a", "a", "1")
        tomllib.loads(with_table(text, "columns", TABLE))


@pytest.mark.parametrize(
    "data", [b"a = " + b"[" * 60_000, b"a = " + b"9" * 60_000, b"a = " + b"{a=" * 20_000]
)
def test_a_file_made_to_break_the_parser_is_an_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^c:"):
        parse(data, "c")


def test_the_line_of_a_key_and_of_a_value_in_its_list() -> None:
    text = '# theme\ntheme = "x"\n[keys]\nhelp = [\n  "a",\n  "b",\n]\n\n["colours"]\n[columns]\n'
    assert line_of(text, "", "theme") == 2
    assert line_of(text, "keys", "help") == 4
    assert line_of(text, "keys", "help", "b") == 6
    assert line_of(text, "columns", "") == 10
    assert line_of(text, "keys", "theme") == 0
    assert line_of("columns.shown = 1\n", "columns", "shown") == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", TABLE),
        ('theme = "x"  # mine', f'theme = "x"  # mine\n\n{TABLE}'),
        (
            '# top\n[columns]  # old\nshown = [\n  "a",\n]\n\n# of the keys\n[keys]\nq = "x"\n',
            f'# top\n{TABLE}\n# of the keys\n[keys]\nq = "x"\n',
        ),
        ('[keys]\nq = "x"\n[columns]\n# nothing\n', f'[keys]\nq = "x"\n{TABLE}# nothing\n'),
    ],
)
def test_a_table_is_replaced_and_everything_else_stays(before: str, after: str) -> None:
    assert with_table(before, "columns", TABLE) == after


@pytest.mark.parametrize(
    "text",
    [
        "columns = { shown = [] }\n",
        "columns.shown = []\n",
        "[columns]\nshown = []\n[columns.widths]\nrule = 5\n",
        'a = """\n[columns]\n"""\n',
    ],
)
def test_a_table_that_cannot_be_replaced_safely_is_not_touched(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  of tomllib, or ours
        with_table(text, "columns", TABLE)
