# SPDX-License-Identifier: GPL-2.0-only
"""The module's files call downwards only, in the order that ipttrace.h declares."""

from __future__ import annotations

import re

import pytest

from tests.paths import PROJECT

KMOD = PROJECT / "kmod"
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
# A function, or a variable, of this module that is visible outside of its file.
FUNCTION = re.compile(r"^(?!static|extern)\w[\w\s*]*?\b(ipttrace_\w+)\([^;{]*\)\s*^\{", re.M)
VARIABLE = re.compile(
    r"^(?:(?!static|extern)[\w\s*]+ |DEFINE_PER_CPU\([\w\s]+, )(ipttrace_\w+)(?:\[\w+\])?\)?;$",
    re.M,
)


def order() -> list[str]:
    """The files from top to bottom."""
    head = (KMOD / "ipttrace.h").read_text().split("#ifndef", 1)[0]
    return re.findall(r"^ \*\t(\w+\.c)\t", head, re.M)


def source(file: str) -> str:
    return COMMENT.sub("", (KMOD / file).read_text())


def defined(file: str) -> set[str]:
    text = source(file)
    return {*FUNCTION.findall(text), *VARIABLE.findall(text)}


def test_the_order_names_every_file() -> None:
    assert sorted(order()) == sorted(path.name for path in KMOD.glob("*.c"))
    built = re.findall(r"(\w+)\.o", (KMOD / "Kbuild").read_text().split("ipttrace-y")[1])
    assert [f"{name}.c" for name in built] == order()


@pytest.mark.parametrize("file", order())
def test_a_file_uses_only_files_below_it(file: str) -> None:
    # GIVEN what the files above it define
    above = {name: one for one in order()[: order().index(file)] for name in defined(one)}
    # THEN it uses none of that
    used = set(re.findall(r"\bipttrace_\w+", source(file)))
    assert {name: above[name] for name in sorted(used & above.keys())} == {}


def test_the_files_define_what_others_use() -> None:
    """The patterns above find definitions at all."""
    everything = set().union(*map(defined, order()))
    assert {"ipttrace_control_arm", "ipttrace_stats", "ipttrace_take_instance"} <= everything
    declared = set(re.findall(r"\b(ipttrace_\w+)\([^*]", source("ipttrace.h")))
    inline = set(re.findall(r"inline \w+ (ipttrace_\w+)\(", source("ipttrace.h")))
    assert declared - everything - inline == set()
