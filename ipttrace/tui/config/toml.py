# SPDX-License-Identifier: GPL-2.0-only
"""TOML as users write it: what is wrong with it and in which line; a table replaced.

tomllib parses, but neither says where a value is nor writes.  Pure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from ipttrace.text import clean

_AT: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_HEADER: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?$")
_ANY_HEADER: Final = re.compile(r"\s*\[")


class ConfigError(Exception):
    """What is wrong: one line, safe for a terminal, with the file, the line and the remedy."""


def problem(path: object, line: int, what: str) -> ConfigError:
    """The error "PATH:LINE: WHAT"; `line` 0: unknown."""
    return ConfigError(f"{clean(str(path))}:{f'{line}:' if line else ''} {what}")


def parse(data: bytes, path: object) -> tuple[str, dict[str, Any]]:
    """The text and its tables.  Raises ConfigError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise problem(path, line, "not UTF-8; save the file as UTF-8") from None
    try:
        return text, tomllib.loads(text)
    except RecursionError:
        raise problem(path, 0, "nested too deeply; see ipttrace config") from None
    except ValueError as error:  # a number that is too long, too
        message = clean(str(error), 200)
        found = _AT.search(message)
        line = text.count("\n") + 1
        if found is not None and found[1]:
            line = int(found[1])
        elif found is None:
            line = 0
        what = _AT.sub("", message)
        what = what[:1].lower() + what[1:]
        raise problem(
            path, line, f"not TOML: {what}; correct it, or see ipttrace config for an example"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Number, table and text of each line.  Lines of a text of several lines may mislead it."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _HEADER.match(line):
            table = found[1]
        yield number, table, line


def line_of(text: str, table: str, key: str, value: str = "") -> int:
    """The line where `key` of `table` ("": none) is set, or `value` in it; 0: unknown."""
    name = re.compile(rf"\s*(?:{re.escape(key)}|\"{re.escape(key)}\"|'{re.escape(key)}')\s*[=.]")
    dotted = re.compile(rf"\s*{re.escape(table)}\s*[=.]")
    first = 0
    for number, at, line in _lines(text):
        if not first and (
            (key and at == table and name.match(line))
            or (table and at == "" and dotted.match(line))
            or (not key and at == table and _HEADER.match(line))
        ):
            first = number
        if first and (not value or value in line):
            return number
    return first


def with_table(text: str, name: str, table: str) -> str:
    """`text` with the lines `table`, its header among them, as the table `name`.

    What is outside the table stays, comments too.  Raises ValueError if the table is
    written in a way that does not allow that.
    """
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    begin = next(
        (at for at, line in enumerate(lines) if (m := _HEADER.match(line)) and m[1] == name), None
    )
    if begin is None:
        gap = ["\n"] if lines else []
        made = "".join([*lines, *gap, table])
    else:
        later = range(begin + 1, len(lines))
        end = next((at for at in later if _ANY_HEADER.match(lines[at])), len(lines))
        # Comments behind the settings belong to the next table.
        while end > begin + 1 and _is_apart(lines[end - 1]):
            end -= 1
        made = "".join([*lines[:begin], table, *lines[end:]])
    before, after = tomllib.loads(text), tomllib.loads(made)
    wanted = tomllib.loads(table)[name]
    if after != {**before, name: wanted}:
        raise ValueError(f"the table {name} is not written under a line [{name}]")
    return made


def _is_apart(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")
