# SPDX-License-Identifier: GPL-2.0-only
"""What a config file holds, checked against what the screen has.  Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ipttrace.text import clean
from ipttrace.tui.config.toml import ConfigError, line_of, parse, problem

WIDEST: Final = 200  # cells of a column
_TABLES: Final = ("columns", "keys", "colours")
_MOST: Final = 8  # keys of an action


@dataclass(frozen=True, slots=True)
class Settings:
    """The user's settings; what is not set has the default."""

    theme: str | None = None
    columns: tuple[tuple[str, int | None], ...] = ()  # with widths, see `layout.Wanted`
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by action, as written
    colours: Mapping[str, str] = field(default_factory=dict)  # by role, as written


@dataclass(frozen=True, slots=True)
class Known:
    """The names that the screen knows."""

    themes: Collection[str]
    columns: Collection[str]
    actions: Collection[str]
    roles: Collection[str]


class _Reader:
    def __init__(self, data: bytes, path: object) -> None:
        self.path = path
        self.text, self.tables = parse(data, path)

    def fail(self, what: str, table: str, key: str, value: str = "") -> ConfigError:
        return problem(self.path, line_of(self.text, table, key, value), what)

    def check_name(
        self, kind: str, name: str, known: Collection[str], table: str, key: str, value: str = ""
    ) -> None:
        if name not in known:
            raise self.fail(f"no {kind} {quoted(name)}; {meant(name, known)}", table, key, value)

    def table(self, name: str) -> dict[str, Any]:
        found = self.tables.get(name, {})
        if not isinstance(found, dict):
            raise self.fail(f"{name} must be a table; write a line [{name}]", "", name)
        return found


def quoted(text: str) -> str:
    """A text of the file in a message."""
    return f'"{clean(text, 60)}"'


def meant(name: str, known: Collection[str]) -> str:
    """Which of the known names was probably meant, else all of them."""
    if close := difflib.get_close_matches(name[:60], list(known), n=1, cutoff=0.6):
        return f'did you mean "{close[0]}"?'
    return f"use one of {', '.join(known)}" if len(known) <= 20 else "see ipttrace config"


def settings_of(data: bytes, path: object, known: Known) -> Settings:
    """The settings in a file.  Raises ConfigError."""
    reader = _Reader(data, path)
    for key, value in reader.tables.items():
        at = (key, "") if isinstance(value, dict) else ("", key)
        reader.check_name("setting", key, ("theme", *_TABLES), *at)
    theme = reader.tables.get("theme")
    if theme is not None:
        if not isinstance(theme, str):
            raise reader.fail('theme must be a name; write theme = "nord"', "", "theme")
        reader.check_name("theme", theme, known.themes, "", "theme")
    return Settings(
        theme=theme,
        columns=_columns(reader, known.columns),
        keys=_keys(reader, known.actions),
        colours=_colours(reader, known.roles),
    )


def _columns(reader: _Reader, known: Collection[str]) -> tuple[tuple[str, int | None], ...]:
    table = reader.table("columns")
    for key in table:
        reader.check_name("setting of columns", key, ("shown", "widths"), "columns", key)
    shown, widths = table.get("shown", []), table.get("widths", {})
    if not _texts(shown):
        raise reader.fail(
            'shown must be a list of names; write shown = ["time", "verdict"]', "columns", "shown"
        )
    for number, name in enumerate(shown):
        reader.check_name("column", name, known, "columns", "shown", name)
        if name in shown[:number]:
            what = f"column {quoted(name)} is listed twice; remove one"
            raise reader.fail(what, "columns", "shown", name)
    if not isinstance(widths, dict):
        raise reader.fail(
            "widths must be a table; write widths = { rule = 40 }", "columns", "widths"
        )
    for name, cells in widths.items():
        reader.check_name("column", name, known, "columns", "widths", name)
        if type(cells) is not int or not 1 <= cells <= WIDEST:
            what = f"the width of {quoted(name)} must be a whole number from 1 to {WIDEST}"
            raise reader.fail(what, "columns", "widths", name)
    if widths and not shown:
        what = "widths need the columns in shown; add shown = [...]"
        raise reader.fail(what, "columns", "widths")
    return tuple((name, widths.get(name)) for name in shown)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _keys(reader: _Reader, known: Collection[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for action, value in reader.table("keys").items():
        reader.check_name("action", action, known, "keys", action)
        keys: Sequence[str] = [value] if isinstance(value, str) else value
        if not _texts(keys) or not 1 <= len(keys) <= _MOST:
            what = f'{action} must be a key or a list of keys; write {action} = "x"'
            raise reader.fail(what, "keys", action)
        found[action] = tuple(keys)
    return found


def _colours(reader: _Reader, known: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, value in reader.table("colours").items():
        reader.check_name("colour", role, known, "colours", role)
        if not isinstance(value, str):
            what = f'{role} must be a colour; write {role} = "red" or "#ff5555"'
            raise reader.fail(what, "colours", role)
        found[role] = value
    return found
