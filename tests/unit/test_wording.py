# SPDX-License-Identifier: GPL-2.0-only
"""Messages and documents avoid the words that docs/wording.md puts in code under "not"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.paths import PROJECT

_DOCUMENTS = ("*.md", "docs/*.md", "docs/*/*.md", "man/*.8")
_CODE = "ipttrace"


def avoided() -> list[str]:
    """The words and phrases in code in the last columns of wording.md's tables."""
    text = (PROJECT / "docs" / "wording.md").read_text()
    cells = re.findall(r"\|([^|\n]*)\|$", text, re.MULTILINE)
    return sorted({word for cell in cells for word in re.findall(r"`([^`]+)`", cell)})


def messages(source: str) -> Iterator[str]:
    """The strings of a module with more than one word, except docstrings."""
    tree = ast.parse(source)
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in docstrings:
            continue
        if isinstance(node.value, str) and " " in node.value.strip():
            yield node.value


def found(text: str) -> list[str]:
    """The avoided words in a text, over line breaks too; names of files are not text."""
    plain = re.sub(r"\s+", " ", re.sub(r"[\w./-]+\.(md|py|c|h)\b", "", text)).lower()
    return [word for word in avoided() if re.search(rf"\b{re.escape(word)}\b", plain)]


def test_the_list_is_read() -> None:
    words = avoided()
    assert {"told", "nobody", "in force"} <= set(words)
    assert all(word == word.lower() and "_" not in word for word in words)
    assert found("a text of which\nNobody was Told") == ["nobody", "told"]
    assert found("an untold number in `docs/0009-nobody-waits.md`") == []


@pytest.mark.parametrize(
    "document",
    sorted(
        path.relative_to(PROJECT).as_posix()
        for pattern in _DOCUMENTS
        for path in PROJECT.glob(pattern)
        if path.name != "wording.md"
    ),
)
def test_documents_use_the_terms(document: str) -> None:
    assert found((PROJECT / document).read_text()) == []


def test_messages_use_the_terms() -> None:
    wrong = [
        (path.relative_to(PROJECT).as_posix(), text, words)
        for path in sorted((PROJECT / _CODE).rglob("*.py"))
        for text in messages(path.read_text())
        if (words := found(text))
    ]
    assert wrong == []
