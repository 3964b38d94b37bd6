# SPDX-License-Identifier: GPL-2.0-only
"""What the module counts does not wrap: 32 bits last an hour at a million calls a second."""

from __future__ import annotations

import re

from tests.paths import PROJECT

HIGH_WATER = {"depth"}  # how deep calls were nested: a maximum, not a count


def test_every_counter_and_the_number_of_a_call_have_64_bits() -> None:
    header = (PROJECT / "kmod" / "ipttrace.h").read_text()
    found = re.search(r"^struct ipttrace_stats \{\n(.*?)^\};", header, re.M | re.S)
    assert found is not None
    types = {name: kind for kind, name in re.findall(r"^\t(\w+) (\w+)", found[1], re.M)}
    assert {"calls", "refused", "matched", "due", "next_call"} <= types.keys()
    assert {name for name, kind in types.items() if kind != "u64"} == HIGH_WATER
