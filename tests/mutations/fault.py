# SPDX-License-Identifier: GPL-2.0-only
"""A fault: text of a source file, what stands in its place, and the tests that then fail."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of docs/kernel-tests.md.

    - ``name``: unique, as in the document
    - ``file``: its path in the project, below kmod/ or ipttrace/
    - ``text``: occurs in the file exactly once; its white space stands for any other
    - ``instead``: what stands there with the fault
    - ``tests``: node ids of pytest; each of them must fail
    - ``kernel``: the series on which they do, or ``debug``
    - ``kills``: the guest may die of it, which then counts as a failure of the test
    """

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]
    kernel: str = "6.12"
    kills: bool = False


class CannotApply(Exception):
    """The fault does not fit the sources any more."""


def put_back(fault: Fault, folder: Path) -> None:
    """Puts the fault into the copy of the project in `folder`.  Raises CannotApply."""
    path = folder / fault.file
    try:
        source = path.read_text()
    except OSError as error:
        raise CannotApply(f"{fault.file}: {error.strerror}") from error
    found = list(re.finditer(r"\s+".join(map(re.escape, fault.text.split())), source))
    if len(found) != 1:
        raise CannotApply(f"its text occurs {len(found)} times in {fault.file}")
    start, end = found[0].span()
    path.write_text(source[:start] + fault.instead + source[end:])
