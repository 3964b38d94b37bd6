# SPDX-License-Identifier: GPL-2.0-only
"""Files of tests: what they say, and one clear line for those that are wrong or hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.whatif.checks.file import By, parse, read
from ipttrace.whatif.errors import WhatIfError

PACKET = "packet: tcp 10.1.0.2:1 > 10.2.0.2:443 in lan0 syn"


def test_a_test_says_what_is_expected() -> None:
    text = f"""\
network: network.json
rules: [a, ../b]
tests:
- {PACKET}
  verdict: dropped
  by: inet filter forward policy
  from: fd00::1
  to: "[fd00::2]:443"
- packet: from row 3 of trace.iptr
  delivered: no
"""
    found = parse(text, Path("office"))
    assert found.network == "office/network.json"
    assert found.rules == ("office/a", "office/../b")
    one, two = found.tests
    assert (one.verdict, one.by) == ("dropped", By("filter", "forward", 0))
    assert (one.source, one.target) == (("fd00::1", None), ("fd00::2", 443))
    assert getattr(two.packet, "file", "") == "office/trace.iptr"
    assert two.delivered is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys and values belong here"),
        ("[" * 5000, "nested too deeply"),
        ("a: &x [1]\nb: *x", "line 2: an alias"),
        ("tests: []\ntests: []", "line 2: tests is given twice"),
        ("tests: !!python/object/apply:os.system [id]", "line 1: could not determine"),
        ("tests: \x1b[2J", "not YAML: "),
        ("tests: []", "tests: a list of 1"),
        ("test: []", "unknown key test"),
        ("tests: [1]", "test 1: keys and values"),
        ("tests: [{verdict: dropped}]", "test 1: packet is missing"),
        (f"tests: [{{{PACKET}}}]", "nothing is expected"),
        (f"tests: [{{{PACKET}, verdict: DROP}}]", "verdict is accepted or dropped"),
        (f"tests: [{{{PACKET}, by: FORWARD}}]", "by is a table, a chain"),
        (f"tests: [{{{PACKET}, to: here}}]", "ADDRESS or ADDRESS:PORT"),
        (f"tests: [{{{PACKET}, delivered: 7}}]", "delivered is yes or no"),
        ("tests: [{packet: tcp x, verdict: dropped}]", "packet: .*is not an address"),
        (f"tests: [{{{PACKET}, leaves: [1]}}]", "leaves: a text belongs here"),
        ("? [1]\n: 2", "line 1: a key that is not a word"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(WhatIfError, match=message) as caught:
        parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tests.yaml"
    path.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(WhatIfError, match=r"tests\.yaml: larger than 1 MB"):
        read(str(path))
