# SPDX-License-Identifier: GPL-2.0-only
"""What the BPF programs write becomes runs, with all of their hits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ipttrace.capture.bpf import runs
from ipttrace.capture.bpf.calls import make_calls
from ipttrace.capture.bpf.runs import LongNames, RunReader
from ipttrace.capture.netlink.events import ChainRegistry
from ipttrace.capture.netlink.names import RecordNames
from ipttrace.netfilter import DROP
from ipttrace.stream import record
from tests.paths import PROJECT

HEADER = PROJECT / "bpf" / "run.h"
STRUCTS = {
    "ipttrace_run": runs.RUN_DTYPE,
    "ipttrace_run_hit": runs.HIT_DTYPE,
    "ipttrace_run_name": runs.NAMED_DTYPE,
}


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_lies_where_the_compiler_puts_it(struct: str, tmp_path: Path) -> None:
    # GIVEN the header as compiled, and its mirror
    dtype = STRUCTS[struct]
    assert dtype.fields is not None
    lines = ["#include <stdio.h>", "#include <linux/types.h>", f'#include "{HEADER}"']
    lines += ["int main(void) {"]
    lines += [
        f'printf("%zu %zu ", __builtin_offsetof(struct {struct}, {name}),'
        f" sizeof(((struct {struct} *)0)->{name}));"
        for name in dtype.names or ()
    ]
    end = "__builtin_offsetof(struct ipttrace_run, hits)"
    size = end if struct == "ipttrace_run" else f"sizeof(struct {struct})"
    lines.append(f'printf("%zu %d %d", {size}, IPTTRACE_RUN_HITS, IPTTRACE_RUN_NAME_LEN); }}')
    (tmp_path / "layout.c").write_text("\n".join(lines))
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    said = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True)
    # THEN offsets and sizes are the same
    places = [
        part
        for name in dtype.names or ()
        for part in (dtype.fields[name][1], dtype.fields[name][0].itemsize)
    ]
    assert list(map(int, said.stdout.split())) == [
        *places,
        dtype.itemsize,
        runs.HITS,
        runs.NAME_LEN,
    ]


class Ring:
    """Records as a ring would return them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._lengths: list[int] = []

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
    found["chain"] = chain
    return found


def head(total: int, **fields: object) -> np.ndarray:
    found = np.zeros(1, runs.RUN_DTYPE)
    found["entry"]["source"] = record.SOURCE_BPF
    found["entry"]["ct_orig_dport"] = 53
    found["exit"]["rules"] = total
    found["table"] = b"t"
    for name, value in fields.items():
        found[name] = value
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
    assert found.heads["entry"]["ct_orig_dport"].tolist() == [53, 53, 53]


def test_names_that_are_too_long_for_a_run_come_ahead_of_it() -> None:
    # GIVEN two runs through chains whose names begin with the same 63 bytes
    ring = Ring()
    begin = b"n" * 100
    for began in (5, 6):
        piece = np.array([(7, began)], runs.PIECE_DTYPE)
        path = hits(2, chain=begin[:63])
        path["time"] = [began, began + 1]
        for time, end in ((0, b"table"), (began, b"%d" % began), (began + 1, b"end")):
            name = np.zeros(1, runs.NAMED_DTYPE)
            name["piece"], name["time"], name["name"] = piece, time, begin + end
            ring.add(name.tobytes())
        ring.add(head(2, piece=piece, table=begin[:63]).tobytes() + path.tobytes())
    ring.add(head(1).tobytes() + hits(1).tobytes())
    # WHEN calls are made of them
    reader, names = RunReader(), RecordNames()
    read = reader.read(*ring.take())
    chains = ChainRegistry()
    calls = make_calls(read, chains, lambda _: None, names, reader.long)
    # THEN each name is known in full
    ends = (b"5", b"end", b"6", b"end")
    expected = [names.short(begin + end) for end in ends]
    assert calls.rules["chain"].tolist() == [*expected, b"in"]
    assert len(set(expected)) == 3
    assert {one.table for one in chains.chains} == {begin + b"table", b"t"}
    # AND a name of the kernel's is never taken for what stands for a long one
    assert reader.long.whole(np.array([b"0" * 63], "S64")).tolist() == [b"0" * 63]


def test_of_very_many_long_names_the_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MOST_LONG", 3)
    names = LongNames()
    tokens = [names.token(b"n" * 70 + b"%d" % number) for number in range(5)]
    found = names.whole(np.array(tokens, "S64")).tolist()
    assert found == [b"", b"", *(b"n" * 70 + b"%d" % number for number in (2, 3, 4))]


def test_a_record_of_no_known_length_is_left_out() -> None:
    ring = Ring()
    ring.add(b"\0" * 608)
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
    calls = make_calls(read, ChainRegistry(), lambda events: None, names, LongNames())
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
    calls = make_calls(read, ChainRegistry(), lambda _: None, RecordNames(), LongNames())
    # THEN there are two rules, the return and the policy
    assert calls.rules["match"].tolist() == [0, 0, 1, 2]
    assert calls.rules["chain"].tolist() == [b"in", b"sub", b"sub", b"in"]
    assert calls.exits["rules"].tolist() == [4]


def test_a_run_without_hits_is_a_call_without_rules() -> None:
    ring = Ring()
    ring.add(head(0).tobytes())
    ring.add(head(1).tobytes() + hits(1).tobytes())
    read = RunReader().read(*ring.take())
    calls = make_calls(read, ChainRegistry(), lambda _: None, RecordNames(), LongNames())
    assert calls.exits["rules"].tolist() == [0, 1]
    assert calls.rules["call"].tolist() == [calls.entries["call"][1]]
