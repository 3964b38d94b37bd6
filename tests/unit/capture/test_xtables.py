# SPDX-License-Identifier: GPL-2.0-only
"""A legacy table's entries are read within their bounds, whatever their lengths say."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from ipttrace.capture.xtables import NONE, Blob, Chains, parse
from ipttrace.rule_words import Target

DROP, ACCEPT, RETURN = -1, -2, -5
ENTRY = 112  # bytes of struct ipt_entry
INFO = struct.Struct("=32sI5I5III")


def entry(target: bytes, matches: bytes = b"", counted: int = 0) -> bytes:
    offset = ENTRY + len(matches)
    head = bytearray(ENTRY)
    struct.pack_into("=HHIQQ", head, 88, offset, offset + len(target), counted, counted, counted)
    return bytes(head) + matches + target


def standard(verdict: int) -> bytes:
    return struct.pack("=H29sBi4x", 40, b"", 0, verdict)


def extension(name: bytes) -> bytes:
    return struct.pack("=H29sB8x", 40, name, 0)


def error(name: bytes) -> bytes:
    return struct.pack("=H29sB30s2x", 64, b"ERROR", 0, name)


def table(*entries: bytes, hooks: dict[int, int] | None = None) -> tuple[bytes, bytes]:
    """The entries, and struct ipt_getinfo; `hooks`: where each base chain begins."""
    data = b"".join(entries)
    begins = [0] * 5
    for hook, at in (hooks or {1: 0}).items():
        begins[hook] = at
    valid = sum(1 << hook for hook in (hooks or {1: 0}))
    return data, INFO.pack(b"filter", valid, *begins, *[0] * 5, len(entries), len(data))


def read(data: bytes, info: bytes, before: Blob = NONE) -> Blob:
    return parse(np.frombuffer(bytearray(data), np.uint8), 4, info, before)


def chains(data: bytes, info: bytes) -> Chains:
    found = read(data, info).chains
    assert found is not None
    return found


RULE = len(entry(standard(0)))
HEAD = len(entry(error(b"")))


def usual(counted: int = 0, verdict: int = DROP, before: int = 0) -> tuple[bytes, bytes]:
    """INPUT with `before` rules more, a jump to `user` and a drop; `user` with one rule."""
    more = [
        entry(extension(b"MARK")) for _ in range(before)
    ]  # each as long as a rule with a verdict
    user = (before + 3) * RULE + HEAD
    return table(
        *more,
        entry(standard(user), counted=counted),
        entry(standard(verdict)),
        entry(standard(ACCEPT)),
        entry(error(b"user")),
        entry(standard(user + RULE)),  # goes on with the next rule
        entry(standard(RETURN)),
        entry(error(b"ERROR")),
    )


def test_chains_have_their_rules_policies_and_targets() -> None:
    found = chains(*usual())
    assert {name: (one.policy, len(one.contents)) for name, one in found.items()} == {
        "INPUT": ("ACCEPT", 2),
        "user": (None, 1),
    }
    assert [found["INPUT"].target(number) for number in (1, 2)] == [
        Target("-j", "user"),
        Target("-j", "DROP"),
    ]
    assert found["user"].target(1) is None


def test_counters_are_no_change_and_a_verdict_is_one_of_its_chain() -> None:
    before = read(*usual())
    assert read(*usual(counted=7), before) is before
    assert read(*usual(counted=7)) == before
    changed = read(*usual(verdict=ACCEPT), before)
    assert changed != before
    assert changed.chains is not None
    assert before.chains is not None
    assert changed.chains["INPUT"] != before.chains["INPUT"]
    assert changed.chains["INPUT"].contents[0] == before.chains["INPUT"].contents[0]
    assert changed.chains["user"] == before.chains["user"]


def test_rules_before_a_chain_do_not_change_it_or_the_jumps_to_it() -> None:
    one, other = chains(*usual()), chains(*usual(before=3))
    assert one["user"] == other["user"]
    assert one["INPUT"].contents == other["INPUT"].contents[3:]


def test_a_jump_to_another_chain_is_another_rule() -> None:
    data, info = usual()
    renamed = data.replace(b"user", b"else")
    assert chains(data, info)["INPUT"].contents[0] != chains(renamed, info)["INPUT"].contents[0]


@pytest.mark.parametrize("where", [88, 90], ids=["target", "next entry"])
@pytest.mark.parametrize("value", [0, 1, 4, 111, 113, 0x7FFC, 0xFFFC, 0xFFFF])
@pytest.mark.parametrize("index", [0, 2, 6])
def test_offsets_beyond_the_entry_or_the_table_are_no_table(
    where: int, value: int, index: int
) -> None:
    data, info = usual()
    starts = [0, RULE, 2 * RULE, 3 * RULE, 3 * RULE + HEAD, 4 * RULE + HEAD, 5 * RULE + HEAD]
    bad = bytearray(data)
    struct.pack_into("=H", bad, starts[index] + where, value)
    assert read(bytes(bad), info).chains is None


@pytest.mark.parametrize("hook_entry", [4, RULE - 1, 1 << 20, 0xFFFFFFFF])
def test_base_chains_that_begin_at_no_entry_are_no_table(hook_entry: int) -> None:
    data, _ = usual()
    info = INFO.pack(b"filter", 0b10, 0, hook_entry, *[0] * 3, *[0] * 5, 7, len(data))
    assert read(data, info).chains is None


@pytest.mark.parametrize("verdict", [0, 3, 1 << 20, 0x7FFFFFFF, -3, -(1 << 31)])
def test_a_jump_to_no_chain_has_no_known_target(verdict: int) -> None:
    found = chains(*usual(verdict=verdict))
    assert found["INPUT"].target(2) == Target("-j", "")


@pytest.mark.parametrize("data", [b"", b"\0" * 111, b"\0" * 112, b"\xff" * 4096, b"\xff" * 4097])
def test_what_is_no_table_has_no_chains(data: bytes) -> None:
    assert read(data, table()[1]).chains is None


def test_two_chains_of_one_name_are_no_table() -> None:
    rule, end = entry(standard(RETURN)), entry(error(b"ERROR"))
    head = entry(error(b"user"))
    assert read(*table(rule, head, rule, head, rule, end)).chains is None


def test_any_bytes_are_read_without_an_error() -> None:
    chance = random.Random(7)
    data, info = usual(before=2)
    for _ in range(2_000):
        bad, about = bytearray(data), bytearray(info)
        for _ in range(chance.randint(1, 6)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        if chance.random() < 0.3:
            about[chance.randrange(32, len(about))] = chance.randrange(256)
        found = read(bytes(bad), bytes(about)).chains
        for chain in (found or {}).values():
            for number in range(1, len(chain.contents) + 1):
                chain.target(number)
