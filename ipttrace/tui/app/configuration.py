# SPDX-License-Identifier: GPL-2.0-only
"""The user's settings as the screen needs them, and the default file as text.

Knows what may be set: columns, actions with keys, roles with colours, themes.  Must not
know widgets beyond that.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES

from ipttrace.text import clean
from ipttrace.tui.app.keys import actions, taken
from ipttrace.tui.config import file, toml
from ipttrace.tui.config.settings import Known, Settings, quoted, settings_of
from ipttrace.tui.config.toml import ConfigError, line_of, problem
from ipttrace.tui.detail.lines import ROLES as DETAIL_ROLES
from ipttrace.tui.key_words import key_names, textual_key, with_keys
from ipttrace.tui.rows.columns import COLUMNS
from ipttrace.tui.rows.row_strips import ROLES as ROW_ROLES
from ipttrace.tui.widgets.ledger import ROLES as LEDGER_ROLES

# Roles with a colour of the user, and what is drawn with it.
COLOURS: Final = {
    "accept": "the verdict ACCEPT",
    "drop": "the verdict DROP, and numbers of drops",
    "other": "other verdicts",
    "lost": "accepted, but the next hop has no link-layer address",
    "raw": "the table's name: raw",
    "mangle": "mangle",
    "nat": "nat",
    "filter": "filter",
    "security": "security",
    "table": "other tables",
    "chain": "chains",
    "rulenum": "rule numbers",
    "policy": "policies, and unknown values",
    "rule": "texts of rules",
    "time": "times",
    "process": "processes",
    "device": "devices",
    "proto": "protocols",
    "endpoints": "addresses and ports",
    "same": "addresses and ports that are the same as in the row above",
    "cost": "costs",
    "cursor": "the background of the selected line",
}
_WIDGETS: Final = (
    ("Rows", "rows", ROW_ROLES),
    ("Ledger", "ledger", LEDGER_ROLES),
    ("Detail", "detail", DETAIL_ROLES),
)


def known() -> Known:
    """The names that the screen knows."""
    return Known(
        themes=tuple(sorted(BUILTIN_THEMES)),
        columns=tuple(column.key for column in COLUMNS),
        actions=tuple(actions()),
        roles=tuple(COLOURS),
    )


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in the user's file; the defaults if there is none.  Raises ConfigError."""
    path = file.path(environ)
    if path is None:
        return Settings()
    try:
        data = file.read(path, environ)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        what = f"cannot be read: {why}; correct that, or set XDG_CONFIG_HOME"
        raise problem(path, 0, what) from None
    if data is None:
        return Settings()
    settings = settings_of(data, path, known())
    _check(settings, data.decode(), path)
    return settings


def _check(settings: Settings, text: str, path: Path) -> None:
    """Raises ConfigError for keys and colours that the screen cannot use."""
    for action, keys in settings.keys.items():
        for key in keys:
            if textual_key(key) is None:
                what = f'no key {quoted(key)}; use one character, or a name like "F5", "Ctrl-K"'
                raise problem(path, line_of(text, "keys", action, key), what)
    if (found := taken(keymap(settings))) is not None:
        action, key, meaning = found
        name = key_names(key)
        why = f'means "{meaning}"' if meaning else "cannot be changed"
        what = f"{action}: the key {name} {why}; choose another key, or change that one too"
        raise problem(path, line_of(text, "keys", action), what)
    for role, value in settings.colours.items():
        try:
            Color.parse(value)
        except ColorParseError:
            what = f'no colour {quoted(value)}; use a name like "red" or "ansi_red", or "#ff5555"'
            raise problem(path, line_of(text, "colours", role), what) from None


def keymap(settings: Settings) -> dict[str, str]:
    """The keys that the user has chosen, by action, as Textual's `set_keymap` has them."""
    return {
        action: ",".join(filter(None, map(textual_key, keys)))
        for action, keys in settings.keys.items()
    }


def css(settings: Settings) -> str:
    """The user's colours as a style sheet."""
    lines = []
    for role, value in settings.colours.items():
        name = Color.parse(value).hex  # not the user's text, which would be read as CSS
        kind = "background" if role == "cursor" else "color"
        for widget, prefix, roles in _WIDGETS:
            if role in roles:
                lines.append(f"{widget} > .{prefix}--{role} {{ {kind}: {name} !important; }}")
    return "\n".join(lines)


# The file.


def columns_table(columns: Iterable[tuple[str, int | None]]) -> str:
    """The table of columns as it stands in the file; without columns, ipttrace chooses them."""
    columns = list(columns)
    names = ", ".join(f'"{name}"' for name, _ in columns)
    shown = textwrap.fill(f"shown = [{names}]", 96, subsequent_indent="    ")
    widths = ", ".join(f"{name} = {cells}" for name, cells in columns if cells is not None)
    lines = ["[columns]", *([shown] if columns else [])]
    lines += [f"widths = {{ {widths} }}"] if widths else []
    return "\n".join(lines) + "\n"


def save_columns(
    columns: Iterable[tuple[str, int | None]], environ: Mapping[str, str] = os.environ
) -> Path:
    """Writes the columns to the user's file and leaves the rest as it is; returns its path.

    Raises ConfigError.
    """
    path = file.path(environ)
    if path is None:
        raise ConfigError("no home folder; set XDG_CONFIG_HOME")
    try:
        data = file.read(path, environ) or b""
        text = toml.with_table(data.decode(), "columns", columns_table(columns))
        settings_of(text.encode(), path, known())
        file.write(path, text.encode(), environ)
    except OSError as error:
        raise problem(path, 0, f"cannot be written: {error.strerror}") from None
    except ValueError as error:
        raise problem(path, 0, f"not written: {clean(str(error), 200)}; edit the file") from None
    return path


def default_text() -> str:
    """The default file, in which every setting is a comment."""
    lines = [
        "# ipttrace: ~/.config/ipttrace/config.toml, or under $XDG_CONFIG_HOME.",
        "# Remove the # before a setting to change it.",
        "",
        f"# One of {', '.join(sorted(BUILTIN_THEMES))}."
        " If not set, terminals with 16 colours keep their own.",
        '#theme = "textual-dark"',
        "",
        "[columns]",
        "# From left to right; if not set, as many as fit the terminal.  Columns that would be",
        "# empty are hidden, and the least important ones if there is too little room.",
    ]
    lines = _wrapped(lines)
    for column in COLUMNS:
        lines += _wrapped([f"#   {column.key}: {column.help}"])
    table = columns_table((column.key, None) for column in COLUMNS).splitlines()[1:]
    lines += [f"#{line}" for line in table]
    lines += [
        "# In cells; a column without a width gets what there is room for.",
        "#widths = { chain = 20, rule = 60 }",
        "",
        "[keys]",
        '# A key or a list of keys: "x", ":", "F5", "Ctrl-K", "Enter", "Space".',
    ]
    for action, binding in actions().items():
        keys = [f'"{_written(key)}"' for key in binding.key.split(",")]
        value = keys[0] if len(keys) == 1 else f"[{', '.join(keys)}]"
        does = with_keys(binding.tooltip or binding.description, {})
        lines.append(f"#{action} = {value}  # {does}")
    lines += [
        "",
        "[colours]",
        '# A name, "ansi_" and a name of the terminal\'s own 16 colours, or "#rrggbb".',
        "# If not set, the theme's colours are used.",
    ]
    for role, what in COLOURS.items():
        lines.append(f'#{role} = "{_EXAMPLES.get(role, "white")}"  # {what}')
    return "\n".join(lines) + "\n"


_EXAMPLES: Final = {"accept": "green", "drop": "#ff5555", "cursor": "ansi_blue"}


def _wrapped(lines: Iterable[str]) -> list[str]:
    made: list[str] = []
    for line in lines:
        made += textwrap.wrap(line, 96, subsequent_indent="#     ") or [""]
    return made


def _written(key: str) -> str:
    """A key of Textual's as users write it."""
    name = key_names(key)
    return name if name.isascii() else key
