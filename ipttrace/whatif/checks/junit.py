# SPDX-License-Identifier: GPL-2.0-only
"""Results of tests as JUnit XML, which CI systems read.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from ipttrace.whatif.checks.check import Result
from ipttrace.whatif.checks.words import reasons

# What XML 1.0 does not allow.
_BAD: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(results: Sequence[Result], name: str) -> bytes:
    """Returns the XML of one suite, called `name`."""
    seconds = f"{sum(one.seconds for one in results):.3f}"
    counts = {
        "name": _plain(name),
        "tests": str(len(results)),
        "failures": str(sum(bool(one.wrong) for one in results)),
        "errors": str(sum(bool(one.error) for one in results)),
        "time": seconds,
    }
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", counts)
    for one in results:
        about = {"classname": _plain(name), "name": _plain(one.test.name)}
        case = ElementTree.SubElement(suite, "testcase", {**about, "time": f"{one.seconds:.3f}"})
        if not one.passed:
            kind = "error" if one.error else "failure"
            message = _plain(one.error or "; ".join(one.wrong))
            told = ElementTree.SubElement(case, kind, {"message": message})
            told.text = _plain("\n".join(reasons(one)))
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _plain(text: str) -> str:
    return _BAD.sub("?", text)
