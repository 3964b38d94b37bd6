# SPDX-License-Identifier: GPL-2.0-only
"""The tree: each file says what it is, each folder lists its files, the tests mirror it.

import-linter checks which file may import which.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.paths import PROJECT

PACKAGE: Final = PROJECT / "ipttrace"
UNIT: Final = PROJECT / "tests" / "unit"
MOST_LINES: Final = 400

# Tests of the project as such, and folders that are mirrored from elsewhere than ipttrace/.
ABOUT_THE_PROJECT: Final = {
    *("test_architecture.py", "test_documents.py", "test_shared_files.py", "test_wording.py"),
}
ELSEWHERE: Final = {"kmod": PROJECT / "kmod", "mutations": PROJECT / "tests" / "mutations"}

PYTHON: Final = sorted(PACKAGE.rglob("*.py"))
C: Final = sorted(file for folder in ("kmod", "bpf") for file in (PROJECT / folder).rglob("*.[ch]"))
FOLDERS: Final = sorted(file.parent for file in PACKAGE.rglob("__init__.py"))
TESTS: Final = sorted(UNIT.rglob("test_*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def about(file: Path) -> str:
    """The first docstring, or the first comment behind the licence's."""
    text = file.read_text()
    if file.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    rest = text.partition("\n")[2] if text.startswith("//") else text.partition("*/")[2]
    comment = re.match(r"\s*/\*(.*?)\*/", rest, re.S)
    return comment[1] if comment else ""


@pytest.mark.parametrize("file", [*PYTHON, *C], ids=name)
def test_a_file_has_a_licence_and_says_what_it_holds(file: Path) -> None:
    with file.open() as lines:
        assert "SPDX-License-Identifier: " in lines.readline()
    assert about(file), "no docstring or comment at the beginning"


@pytest.mark.parametrize("file", [*PYTHON, *C], ids=name)
def test_a_file_above_400_lines_says_why_it_is_long(file: Path) -> None:
    count = len(file.read_text().splitlines())
    assert count <= MOST_LINES or re.search(r"\blong(er)?\b", about(file), re.I), f"{count} lines"


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_package_lists_its_modules(folder: Path) -> None:
    text = about(folder / "__init__.py")
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "__main__"}
    packages = {file.parent.name for file in folder.glob("*/__init__.py")}
    missing = sorted(one for one in modules | packages if not re.search(rf"\b{one}\b", text))
    assert missing == [], "not in the docstring of __init__.py"


def is_mirrored(test: Path) -> bool:
    """Whether the test is named after a module or package, or after its own folder.

    test_Y.py and test_Y_ASPECT.py in tests/unit/X test ipttrace/X/Y.py or ipttrace/X/Y/; with the
    last part of X as Y they test the package as such.
    """
    inside = test.relative_to(UNIT).parts[:-1]
    folder = ELSEWHERE.get(inside[0], PACKAGE.joinpath(*inside)) if inside else PACKAGE
    words = test.stem.removeprefix("test_").split("_")
    names = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    modules = {file.stem for file in folder.glob("*.py")}
    packages = {file.parent.name for file in folder.glob("*/__init__.py")}
    return folder.is_dir() and bool(names & (modules | packages | set(inside[-1:])))


@pytest.mark.parametrize("test", TESTS, ids=name)
def test_unit_tests_mirror_the_tree(test: Path) -> None:
    assert test.name in ABOUT_THE_PROJECT or is_mirrored(test)
