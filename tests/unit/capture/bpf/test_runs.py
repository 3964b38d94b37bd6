# SPDX-License-Identifier: GPL-2.0-only
"""What the BPF programs write becomes runs, with all of their hits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ipttrace.capture.bpf import runs
from ipttrace.capture.bpf.calls import make_calls
from ipttrace.capture.bpf.runs import RunNames, RunReader
from ipttrace.capture.netlink.events import ChainRegistry
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.netfilter import DROP
from ipttrace.stream import record
from tests.paths import PROJECT

HEADER = PROJECT / "bpf" / "run.h"
STRUCTS = {
    "ipttrace_run": runs.RUN_DTYPE,
    "ipttrace_run_hit": runs.HIT_DTYPE,
    "ipttrace_run_name": runs.NAME_DTYPE,
}
NUMBERS = {b"t": 1, b"in": 2, b"sub": 3}  # of names


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_lies_where_the_compiler_puts_it(struct: str, tmp_path: Path) -> None:
    # GIVEN the header as compiled, and its mirror
    dtype = STRUCTS[struct]
    assert dtype.fields is not None
    fields = dict(dtype.fields)
    if struct == "ipttrace_run":
        # What the mirror has together in `head`, for copies of it.
        inner, at = fields.pop("head")[:2]
        fields |= {name: (one[0], one[1] + at) for name, one in (inner.fields or {}).items()}
    lines = ["#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines += ["int main(void) {"]
    lines += [
        f'printf("%zu %zu ", __builtin_offsetof(struct {struct}, {name}),'
        f" sizeof(((struct {struct} *)0)->{name}));"
        for name in fields
    ]
    end = "__builtin_offsetof(struct ipttrace_run, hits)"
    size = end if struct == "ipttrace_run" else f"sizeof(struct {struct})"
    lines.append(f'printf("%zu %d", {size}, IPTTRACE_RUN_HITS); }}')
    (tmp_path / "layout.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    said = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True)
    # THEN offsets and sizes are the same
    places = [part for one in fields.values() for part in (one[1], one[0].itemsize)]
    assert list(map(int, said.stdout.split())) == [*places, dtype.itemsize, runs.HITS]


class Ring:
    """Records as a ring would return them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._lengths: list[int] = []

    def tell(self, names: dict[bytes, int]) -> None:
        for name, number in names.items():
            one = np.zeros(1, runs.NAME_DTYPE)
            one["number"], one["name"] = number, name
            self.add(one.tobytes())

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self._lengths.append(len(data))

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = np.array(self._lengths)
        starts = (np.cumsum(lengths) - lengths) >> 3
        return np.frombuffer(b"".join(self._parts), np.uint64), starts, lengths


def hits(count: int, first: int = 1, chain: bytes = b"in") -> np.ndarray:
    found = np.zeros(count, runs.HIT_DTYPE)
    found["handle"] = np.arange(first, first + count)
    found["type"] = 3
    found["chain"] = NUMBERS[chain]
    return found


def nowhere(events: np.ndarray, after: np.ndarray, tables: np.ndarray) -> None:
    """Of a ruleset of which nothing is known."""


def told() -> RunNames:
    found = RunNames()
    for name, number in NUMBERS.items():
        found.learn(number, name)
    return found


def head(total: int, **fields: object) -> np.ndarray:
    found = np.zeros(1, runs.RUN_DTYPE)
    found["entry"]["source"] = record.SOURCE_BPF
    found["entry"]["ct_orig_dport"] = 53
    found["exit"]["rules"] = total
    found["head"]["table"] = NUMBERS[b"t"]
    for name, value in fields.items():
        found["head"][name] = value
    return found


def test_a_run_with_more_hits_than_a_record_holds_has_them_all_in_order() -> None:
    # GIVEN a run of 20 hits, of which 16 went ahead, beside runs of one hit each
    ring = Ring()
    piece = np.array([(7, 99)], runs.PIECE_DTYPE)
    ring.add(head(1).tobytes() + hits(1).tobytes())
    ring.add(piece.tobytes() + hits(16).tobytes())
    ring.add(head(20, piece=piece).tobytes() + hits(4, 17).tobytes())
    ring.add(head(1).tobytes() + hits(1, 5).tobytes())
    # WHEN they are read
    found = RunReader().read(*ring.take())
    # THEN each has its own
    assert found.counts.tolist() == [1, 20, 1]
    assert found.hits["handle"].tolist() == [1, *range(1, 21), 5]
    # AND ports have the order of bytes that they have on the wire
    assert found.entries["ct_orig_dport"].tolist() == [53, 53, 53]


def test_names_are_those_that_were_told_before_the_run() -> None:
    # GIVEN two runs, with names of every length, and a chain whose number nothing told of
    ring = Ring()
    long = b"n" * 254
    ring.tell({b"t": 1, long + b"1": 1 << 32 | 1, b"x": 2 << 32 | 1})
    path = hits(3)
    path["chain"] = [1 << 32 | 1, 2 << 32 | 1, 77]
    ring.add(head(3).tobytes() + path.tobytes())
    # AND a name that has the place of another one, whose runs are still to be read
    ring.tell({long + b"2": 1 << 32 | 2})
    path["chain"] = [1 << 32 | 2, 2 << 32 | 1, 1 << 32 | 1]
    ring.add(head(3).tobytes() + path.tobytes())
    # WHEN calls are made of them
    reader, names, chains = RunReader(), RecordNames(), ChainRegistry()
    read = reader.read(*ring.take())
    calls = make_calls(read, chains, nowhere, names, reader.names)
    # THEN each name is known in full, and the other one is unknown
    first, second = (names.short(long + end) for end in (b"1", b"2"))
    assert first != second
    assert calls.rules["chain"].tolist() == [first, b"x", b"", second, b"x", first]
    assert {one.table for one in chains.chains} == {b"t"}


def test_of_very_many_names_those_in_use_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a name that stays, and five that had one place, one after the other
    monkeypatch.setattr(runs, "_MOST_OLD", 2)
    names = RunNames()
    names.learn(1 << 32 | 1, b"stays")
    numbers = [2 << 32 | version for version in range(1, 6)]
    for number in numbers:
        names.learn(number, b"%d" % number)
    # THEN it is known, with the last one there and the two before it
    assert names.of(np.array([1 << 32 | 1])) == [b"stays"]
    assert names.of(np.array(numbers)) == [b"", b"", *(b"%d" % one for one in numbers[2:])]


def test_a_record_of_no_known_length_is_left_out() -> None:
    ring = Ring()
    ring.add(b"\0" * 544)
    ring.add(head(1).tobytes() + hits(1).tobytes())
    assert RunReader().read(*ring.take()).counts.tolist() == [1]


def test_a_drop_is_a_drop_though_the_kernel_returns_stolen() -> None:
    # GIVEN what nft_do_chain() returns for a drop since Linux 6.7, and a packet that was stolen
    ring = Ring()
    for verdict in (1 << 16 | 2, 2, 1, 5 << 16 | 3):
        one = head(1)
        one["exit"]["verdict"] = verdict
        ring.add(one.tobytes() + hits(1).tobytes())
    # WHEN calls are made of it
    names = RecordNames()
    read = RunReader().read(*ring.take())
    calls = make_calls(read, ChainRegistry(), nowhere, names, told())
    # THEN the first was dropped, and the others are as they were
    assert calls.exits["verdict"].tolist() == [DROP, 2, 1, 5 << 16 | 3]


def test_the_end_of_a_base_chain_is_its_policy_only() -> None:
    # GIVEN a run through a rule and a chain to which it jumps, to the end of both
    ring = Ring()
    path = np.concatenate([hits(1), hits(1, 9, b"sub"), hits(1, 0, b"sub"), hits(2, 0)])
    path["handle"][-1] = 0
    path["type"][-1] = 1
    ring.add(head(5).tobytes() + path.tobytes())
    # WHEN a call is made of it
    read = RunReader().read(*ring.take())
    calls = make_calls(read, ChainRegistry(), nowhere, RecordNames(), told())
    # THEN there are two rules, the return and the policy
    assert calls.rules["match"].tolist() == [0, 0, 1, 2]
    assert calls.rules["chain"].tolist() == [b"in", b"sub", b"sub", b"in"]
    assert calls.exits["rules"].tolist() == [4]


def test_hits_are_looked_up_in_each_ruleset_that_they_may_be_of() -> None:
    # GIVEN the run of a table that was made again, and one during which rules were replaced
    # under their handles
    ring = Ring()
    for number, (name, handle) in enumerate([(b"t", 7), (b"t", 9)]):
        one = np.zeros(1, runs.NAME_DTYPE)
        one["number"], one["table"], one["name"] = 50 + number, handle, name
        ring.add(one.tobytes())
    path = hits(2)
    path["handle"], path["verdict"] = 1, [-1, DROP]
    for table, later in ((50, 0), (51, 2)):
        ring.add(head(2, generation=20, later=later, table=table).tobytes() + path.tobytes())
    # WHEN calls are made of them
    asked: list[tuple[int, ...]] = []

    def locate(events: np.ndarray, after: np.ndarray, tables: np.ndarray) -> None:
        columns = [one.tolist() for one in (after, tables, events["verdict"])]
        asked.extend(zip(*columns, strict=True))

    reader = RunReader()
    make_calls(reader.read(*ring.take()), ChainRegistry(), locate, RecordNames(), reader.names)
    # THEN tables are told apart by their handles, and such rules by their verdicts
    assert set(asked) == {(0, 7, 0), (22, 9, -1), (22, 9, DROP)}


def test_a_run_without_hits_is_a_call_without_rules() -> None:
    ring = Ring()
    ring.add(head(0).tobytes())
    ring.add(head(1).tobytes() + hits(1).tobytes())
    read = RunReader().read(*ring.take())
    calls = make_calls(read, ChainRegistry(), nowhere, RecordNames(), told())
    assert calls.exits["rules"].tolist() == [0, 1]
    assert calls.rules["call"].tolist() == [calls.entries["call"][1]]
