# SPDX-License-Identifier: GPL-2.0-only
"""Every fault fits the sources of today, names tests that exist, and is in the document."""

from __future__ import annotations

import ast
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from ipttrace.lab.kernels import DEBUG
from tests.mutations.fault import CannotApply, Fault, put_back
from tests.mutations.faults import FAULTS
from tests.paths import PROJECT

DOCUMENT = PROJECT / "docs" / "kernel-tests.md"


def name(fault: Fault) -> str:
    return fault.name


@cache
def functions(file: str) -> dict[str, bool]:
    """The test functions of a file, and whether each has parameters."""
    found = {}
    for node in ast.parse((PROJECT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            found[node.name] = any(".parametrize(" in text for text in decorators)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_fault_can_be_put_back(fault: Fault, tmp_path: Path) -> None:
    # GIVEN a copy of its file
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True)
    shutil.copyfile(PROJECT / fault.file, copy)
    before = copy.read_text()
    # WHEN it is put back, THEN its text was there once, and something has changed
    put_back(fault, tmp_path)
    assert copy.read_text() != before
    # AND another file is never meant: those below kmod/ and ipttrace/ reach the guest
    assert fault.file.startswith(("kmod/", "ipttrace/"))


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_the_tests_that_must_fail_exist(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        file, _, function = test.partition("::")
        function, bracket, _ = function.partition("[")
        assert function in functions(file), test
        assert functions(file)[function] or not bracket, f"{test} has no parameters"


def test_the_document_has_the_name_of_each_fault_in_this_order() -> None:
    text = DOCUMENT.read_text()
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    assert named == [fault.name for fault in FAULTS]
    assert len(set(named)) == len(named)


def test_faults_are_for_kernels_of_the_lab() -> None:
    kernels = {fault.kernel for fault in FAULTS} - {DEBUG}
    assert all(re.fullmatch(r"\d+\.\d+", kernel) for kernel in kernels)


@pytest.mark.parametrize(("times", "source"), [(0, "b();\n"), (2, "a(1,\n  2);\na(1, 2);\n")])
def test_a_fault_whose_text_is_not_there_once_is_refused(
    tmp_path: Path, times: int, source: str
) -> None:
    file = tmp_path / "x.c"
    file.write_text(source)
    fault = Fault(name="x", file="x.c", text="a(1, 2);", instead="", tests=("t",))
    with pytest.raises(CannotApply, match=f"^its text occurs {times} times in x.c$"):
        put_back(fault, tmp_path)
    assert file.read_text() == source


def test_a_fault_in_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    fault = Fault(name="x", file="gone.c", text="a", instead="b", tests=("t",))
    with pytest.raises(CannotApply, match=r"^gone\.c: No such file or directory$"):
        put_back(fault, tmp_path)


def test_white_space_stands_for_any_other(tmp_path: Path) -> None:
    file = tmp_path / "x.c"
    file.write_text("\tif (a)\n\t\tb();\n\tc();\n")
    put_back(Fault(name="x", file="x.c", text="if (a) b();", instead="d();", tests=()), tmp_path)
    assert file.read_text() == "\td();\n\tc();\n"
