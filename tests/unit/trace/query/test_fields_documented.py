# SPDX-License-Identifier: GPL-2.0-only
"""docs/fields.md lists every field and word, and its examples work."""

from __future__ import annotations

import re

import pytest

from ipttrace.trace import query
from ipttrace.trace.query.fields import ALIASES, fields
from ipttrace.trace.query.words import WORDS
from ipttrace.trace.row import FIELDS
from tests.paths import PROJECT

PAGE = (PROJECT / "docs" / "fields.md").read_text(encoding="utf-8")
# Examples of mistakes; the text below each says so.
WRONG = ("chain~^(DOCKER", "new syn")


def cells(*titles: str) -> list[list[str]]:
    """The cells of the table whose first headings are `titles`."""
    heading = re.escape("| " + " | ".join(titles) + " |")
    (table,) = re.findall(rf"^{heading}.*\n\|[ |-]*\n((?:\|.*\n)+)", PAGE, re.M)
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


def examples() -> list[str]:
    tables = [*cells("field", "type"), *cells("word", "stands for")]
    blocks = re.findall(r"```query\n(.*?)```", PAGE, re.S)
    return [row[-1].strip("`") for row in tables] + "".join(blocks).splitlines()


def test_the_page_lists_every_field_of_a_row_in_order() -> None:
    assert tuple(row[0].strip("`") for row in cells("field", "type")) == FIELDS


def test_the_page_lists_exactly_the_fields_of_the_language() -> None:
    listed = {row[0].strip("`") for row in (*cells("field", "type"), *cells("word", "stands for"))}
    assert listed == {*fields(), "cost_ns"}
    assert "cost_ns" in ALIASES
    for name in FIELDS:
        assert ALIASES.get(name, name) in fields()


def test_the_page_lists_every_word_that_is_a_test_by_itself() -> None:
    listed = {word for row in cells("word", "means") for word in re.findall(r"`([^`]+)`", row[0])}
    assert set(WORDS) <= listed
    for word in listed:
        assert query.compile(word).text


@pytest.mark.parametrize("text", [text for text in examples() if text not in WRONG])
def test_every_example_of_the_page_works(text: str) -> None:
    asked = query.compile(text)
    assert query.compile(asked.text).text == asked.text


@pytest.mark.parametrize("text", WRONG)
def test_examples_of_mistakes_are_errors(text: str) -> None:
    assert text in examples()
    with pytest.raises(query.QueryError):
        query.compile(text)
