# SPDX-License-Identifier: GPL-2.0-only
"""The numpy dtypes are the structs of bpf/guard.h, as a compiler lays them out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ipttrace.guard import layout
from tests.paths import PROJECT

STRUCTS = {
    "ipttrace_guard_policy": layout.POLICY_DTYPE,
    "ipttrace_guard_event": layout.EVENT_DTYPE,
    "ipttrace_guard_values": layout.VALUES_DTYPE,
    "ipttrace_guard_numbers": layout.NUMBERS_DTYPE,
}


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_lies_where_the_compiler_puts_it(struct: str, tmp_path: Path) -> None:
    dtype = STRUCTS[struct]
    assert dtype.fields is not None
    header = PROJECT / "bpf" / "guard.h"
    lines = ["#include <stdio.h>", f'#include "{header}"', "int main(void) {"]
    lines += [
        f'printf("%zu %zu ", __builtin_offsetof(struct {struct}, {name}),'
        f" sizeof(((struct {struct} *)0)->{name}));"
        for name in dtype.fields
    ]
    lines.append(f'printf("%zu", sizeof(struct {struct})); }}')
    (tmp_path / "layout.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    found = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True)
    places = [part for one in dtype.fields.values() for part in (one[1], one[0].itemsize)]
    assert list(map(int, found.stdout.split())) == [*places, dtype.itemsize]
