# SPDX-License-Identifier: GPL-2.0-only
"""The numpy dtypes are bpf/record.h, byte for byte."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ipttrace.capture.kernel import calls as whole
from ipttrace.stream import record
from tests.paths import PROJECT

HEADER = PROJECT / "bpf" / "record.h"
STRUCTS = {"ipttrace_entry": record.ENTRY_DTYPE, "ipttrace_rule": record.RULE_DTYPE}
STRUCTS["ipttrace_exit"] = record.EXIT_DTYPE
STRUCTS["ipttrace_station"] = record.STATION_DTYPE
STRUCTS["ipttrace_socket"] = record.SOCKET_DTYPE
STRUCTS["ipttrace_hit"] = whole.HIT_DTYPE


def fields_of(dtype: np.dtype[np.void]) -> Mapping[str, Any]:
    """Name → (dtype, offset) of a structured dtype."""
    assert dtype.fields is not None
    return dtype.fields


def c_fields(struct: str) -> list[str]:
    """Field names of a struct in the header; those of a head that it begins with too."""
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", HEADER.read_text(), re.S)
    assert body, struct
    fields = []
    for line in body[1].splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if found := re.match(r"\s*struct (\w+) (\w+);", line):
            fields += [f"{found[2]}.{name}" for name in c_fields(found[1])]
        elif found := re.match(r"\s*(?:__u\d+|char)\s+(\w+)", line):
            fields.append(found[1])
    return fields


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[int, int]]]:
    """{struct: {field: (offset, size)}} as the compiler says; "" is the struct itself."""
    folder = tmp_path_factory.mktemp("layout")
    lines = ["#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines.append("int main(void) {")
    for struct in STRUCTS:
        lines.append(f'printf("{struct} - 0 %zu\\n", sizeof(struct {struct}));')
        lines += [
            f'printf("{struct} {field} %zu %zu\\n", __builtin_offsetof(struct {struct},'
            f" {field}), sizeof(((struct {struct} *)0)->{field}));"
            for field in c_fields(struct)
        ]
    lines.append("}")
    (folder / "layout.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", folder / "layout", folder / "layout.c"], check=True)
    said = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for line in said.splitlines():
        struct, field, offset, size = line.split()
        name = "" if field == "-" else field.rpartition(".")[2].removesuffix("_be16")
        found.setdefault(struct, {})[name] = (int(offset), int(size))
    return found


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_lies_where_the_compiler_puts_it(
    layout: dict[str, dict[str, tuple[int, int]]], struct: str
) -> None:
    # GIVEN the header as compiled, and its mirror
    dtype = STRUCTS[struct]
    expected = layout[struct]
    size = expected.pop("")[1]
    # THEN names, offsets and sizes are the same, and nothing is left over
    mirror = {
        name: (int(about[1]), int(about[0].itemsize)) for name, about in fields_of(dtype).items()
    }
    unnamed = {name.rstrip("01"): place for name, place in mirror.items()}
    assert {name.rstrip("01"): place for name, place in expected.items()} == unnamed
    assert dtype.itemsize == size


def test_a_stream_of_today_describes_its_records_for_good() -> None:
    # GIVEN the description that a stream begins with
    described = record.layout()
    # THEN it gives the dtypes back
    assert record.dtypes_of(described) == record.ALL_DTYPES


def test_a_recording_from_before_there_were_stations_and_sockets_can_be_read() -> None:
    # GIVEN the description of a stream that has only the records of calls
    described = record.layout()
    del described["kinds"]["station"], described["kinds"]["socket"]
    # THEN it is as good
    assert record.dtypes_of(described) == record.ALL_DTYPES


def test_records_of_another_version_are_read_by_their_fields() -> None:
    # GIVEN rule records of a version that had a wider chain and a field that is gone
    other = np.dtype([("was", "<u4"), ("rulenum", "<u4"), ("chain", "S64"), ("call", "<u8")])
    records = np.array([(1, 7, b"FORWARD", 99)], other)
    # WHEN they are read
    found = record.convert(records, record.RULE_DTYPE)
    # THEN what both have is there, and the rest is empty
    assert (found["rulenum"][0], found["chain"][0], found["call"][0]) == (7, b"FORWARD", 99)
    assert found["table"][0] == b""


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"kinds": {"entry": {"size": 10**9, "fields": [["call", "<u8", 0, 1]]}}},
        {"kinds": {"entry": {"size": 8, "fields": [["call", "O", 0, 1]]}}},
        {"kinds": {"entry": {"size": 8, "fields": [["call", "<u8", 4, 1]]}}},
        {"kinds": {"entry": {"size": 8, "fields": [["call", "<u8", -8, 1]]}}},
        {"kinds": {"entry": {"size": 8, "fields": []}}},
        {"kinds": {"entry": {"size": 8, "fields": [["call", "<u8", 0, -1]]}}},
        {"kinds": {"entry": {"size": 8, "fields": "call"}}},
        {"kinds": []},
    ],
)
def test_a_description_that_lies_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        record.dtypes_of(damage)


def test_a_call_in_one_piece_lies_as_the_header_says() -> None:
    # GIVEN the offsets that the compiler has checked
    text = HEADER.read_text()
    size = re.search(r"sizeof\(struct ipttrace_call_record\) == (\d+)", text)
    offsets = dict(re.findall(r"IPTTRACE_AT\(ipttrace_call_record, (\w+), (\d+)\)", text))
    hits = re.search(r"#define IPTTRACE_HITS\t(\d+)", text)
    assert size
    assert hits
    # THEN the mirror has them
    assert whole.CALL_DTYPE.itemsize == int(size[1])
    assert int(hits[1]) == whole.HITS
    fields = fields_of(whole.CALL_DTYPE)
    assert {name: fields[name][1] for name in offsets} == {
        name: int(at) for name, at in offsets.items()
    }
    assert fields["entry"][1] == 0
