# SPDX-License-Identifier: GPL-2.0-only
"""Names as ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Hash
from ipttrace.trace.store.names import TOO_MANY, Names


@given(st.lists(st.lists(st.binary(max_size=16), max_size=30), max_size=5))
def test_every_name_is_returned_clean(batches: list[list[bytes]]) -> None:
    names = Names()
    for batch in batches:
        ids = names.intern(np.array(batch, "S16"))
        assert ids.dtype == np.uint32
        shown = [names.text(number) for number in ids]
        assert shown == [clean(raw.split(b"\0", 1)[0]) for raw in batch]


def test_a_name_has_one_id_in_fields_of_any_width_and_padding() -> None:
    names = Names()
    narrow = names.intern(np.array([b"eth0", b"eth0\0garbage"], "S16"))
    wide = names.intern(np.array([b"eth0"], "S32"))
    assert narrow[0] == narrow[1] == wide[0] == names.find("eth0")


def test_names_with_equal_hashes_keep_separate_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN a hash that is equal for all names
    monkeypatch.setattr(Hash, "quick", lambda self, words: np.zeros(len(words[0]), np.uint64))
    names = Names()
    raw = np.array([b"INPUT", b"OUTPUT", b"", b"INPUT"], "S32")
    # WHEN names occur twice
    for _ in range(2):
        ids = names.intern(raw)
        # THEN each keeps its id
        assert [names.text(number) for number in ids] == ["INPUT", "OUTPUT", "", "INPUT"]


def test_endless_new_names_use_bounded_memory() -> None:
    names = Names(limit=100)
    for start in range(0, 1000, 50):
        ids = names.intern(np.array([b"n%d" % at for at in range(start, start + 50)], "S16"))
    assert len(names) <= 101
    assert names.text(int(ids[-1])) == TOO_MANY
    again = names.intern(np.array([b"n5"], "S16"))
    assert names.text(int(again[0])) == "n5"


def test_names_are_read_from_records_of_any_width_and_stride() -> None:
    records = np.zeros(3, [("x", "u1"), ("name", "S16"), ("y", "u1")])
    records["name"] = [b"a", b"b", b"a"]
    names = Names()
    ids = names.intern(records["name"][::-1])
    assert [names.text(number) for number in ids] == ["a", "b", "a"]
    assert len(names.intern(records["name"][:0])) == 0
