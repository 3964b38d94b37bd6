# SPDX-License-Identifier: GPL-2.0-only
"""The user's settings checked against the screen, and the default file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipttrace.tui.app import configuration
from ipttrace.tui.app.keys import actions, taken
from ipttrace.tui.config.settings import Settings
from ipttrace.tui.config.toml import ConfigError
from ipttrace.tui.key_words import key_names, textual_key
from ipttrace.tui.rows.columns import COLUMNS


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def written(environ: dict[str, str], text: str) -> Path:
    path = Path(environ["XDG_CONFIG_HOME"]) / "ipttrace" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_everything_is_as_ever(environ: dict[str, str]) -> None:
    assert configuration.load(environ) == Settings()
    assert configuration.load({}) == Settings()


def test_the_default_file_changes_nothing(environ: dict[str, str]) -> None:
    written(environ, configuration.default_text())
    assert configuration.load(environ) == Settings()


def test_every_setting_of_the_default_file_is_valid_and_the_default(
    environ: dict[str, str],
) -> None:
    # WHEN the # before every setting is removed
    text = re.sub(r"^#(?! )", "", configuration.default_text(), flags=re.MULTILINE)
    text = re.sub(r"^#    ", "    ", text, flags=re.MULTILINE)  # of a list of several lines
    text = "\n".join(line for line in text.splitlines() if not line.startswith("     "))
    written(environ, text)
    settings = configuration.load(environ)
    # THEN all columns are there, and every key is the one that it was
    assert [name for name, _ in settings.columns] == [column.key for column in COLUMNS]
    chosen = configuration.keymap(settings)
    assert chosen == {action: binding.key for action, binding in actions().items()}
    assert set(settings.colours) == set(configuration.COLOURS)
    assert settings.theme == "textual-dark"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[keys]\nfilter = "f"', r'2: filter: the key f means "this row.s flow'),
        ('[keys]\nfilter = "s"', r'2: filter: the key s means "this packet.s socket'),
        ('[keys]\nfilter = "I"', r'2: filter: the key I means "reverse the order'),
        ('[keys]\nhelp = "Esc"', r"2: help: the key Esc cannot be changed"),
        ('[keys]\nhelp = "Ctrl-C"', r"2: help: the key Ctrl-C cannot be changed"),
        ('[keys]\nhelp = "Ctrl-P"', r"2: help: the key Ctrl-P cannot be changed"),
        ('[keys]\nhelp = "a"\nquit = "a"', r'3: quit: the key a means "keys, columns'),
        ('[keys]\nhelp = "Hyper-X"', r'2: no key "Hyper-X"; use one character'),
        ('[keys]\nhelp = ""', r'2: no key ""; use one character'),
        ('[colours]\ndrop = "redd"', r'2: no colour "redd"; use a name like "red"'),
        ('[colours]\ndrop = "red; } * { color: red"', r"2: no colour "),
    ],
)
def test_keys_and_colours_that_the_screen_cannot_use(
    environ: dict[str, str], text: str, message: str
) -> None:
    path = written(environ, text)
    with pytest.raises(ConfigError, match=f"^{path}:{message}"):
        configuration.load(environ)


@pytest.mark.parametrize(
    "text",
    [
        '[keys]\nfilter = "f"\nflow = ":"',  # two keys change places
        '[keys]\nfilter = ["F7", "Tab"]',
        '[keys]\nsort = "f"',  # the rules have no flow key
        '[keys]\nhelp = ["?", "F1", "Ctrl-L"]',
    ],
)
def test_keys_that_are_free_can_be_chosen(environ: dict[str, str], text: str) -> None:
    written(environ, text)
    assert configuration.load(environ).keys


def test_no_key_has_two_meanings_by_default() -> None:
    assert taken({}) is None
    for action, binding in actions().items():
        assert taken({action: binding.key}) is None, action


def test_the_name_of_every_key_in_the_help_can_be_written_in_the_file() -> None:
    for binding in actions().values():
        for key in binding.key.split(","):
            assert textual_key(key_names(key)) == key or not key_names(key).isascii()
            assert textual_key(key) == key


def test_a_file_that_cannot_be_read_says_so(environ: dict[str, str]) -> None:
    path = written(environ, "")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"config.toml: cannot be read: not a regular file"):
        configuration.load(environ)
    with pytest.raises(ConfigError, match="cannot be read"):
        configuration.load({"XDG_CONFIG_HOME": "/a\0b"})


def test_columns_are_saved_and_comments_and_other_tables_stay(environ: dict[str, str]) -> None:
    path = written(environ, '# mine\ntheme = "nord"  # blue\n\n[columns]\nshown = ["time"]\n')
    columns = (("verdict", None), ("rule", 40))
    assert configuration.save_columns(columns, environ) == path
    assert path.read_text() == (
        '# mine\ntheme = "nord"  # blue\n\n'
        '[columns]\nshown = ["verdict", "rule"]\nwidths = { rule = 40 }\n'
    )
    assert configuration.load(environ).columns == columns
    # AND back to those that fit
    configuration.save_columns((), environ)
    assert configuration.load(environ).columns == ()
    assert "# blue" in path.read_text()


def test_columns_are_saved_without_a_file(environ: dict[str, str]) -> None:
    path = configuration.save_columns((("time", None),), environ)
    assert path.read_text() == '[columns]\nshown = ["time"]\n'


def test_a_broken_file_is_not_overwritten(environ: dict[str, str]) -> None:
    path = written(environ, "[columns\n")
    with pytest.raises(ConfigError, match="not written"):
        configuration.save_columns((("time", None),), environ)
    assert path.read_text() == "[columns\n"
