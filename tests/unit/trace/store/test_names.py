# SPDX-License-Identifier: GPL-2.0-only
"""Names kept as numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Hash
from ipttrace.trace.arrays.recent import Recent
from ipttrace.trace.store.names import TOO_MANY, Names


@given(st.lists(st.lists(st.binary(max_size=16), max_size=30), max_size=5))
def test_every_name_comes_back_as_it_went_in_and_clean(batches: list[list[bytes]]) -> None:
    names = Names()
    for batch in batches:
        ids = names.intern(np.array(batch, "S16"))
        assert ids.dtype == np.uint32
        shown = [names.text(number) for number in ids]
        assert shown == [clean(raw.split(b"\0", 1)[0]) for raw in batch]


def test_a_name_has_one_id_whatever_its_width_and_what_comes_after_its_end() -> None:
    names = Names()
    narrow = names.intern(np.array([b"eth0", b"eth0\0garbage"], "S16"))
    wide = names.intern(np.array([b"eth0"], "S32"))
    assert narrow[0] == narrow[1] == wide[0] == names.find("eth0")


def test_two_names_that_hash_alike_are_still_told_apart(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    # GIVEN a hash that is the same for everything
    monkeypatch.setattr(Hash, "quick", lambda self, words: np.zeros(len(words[0]), np.uint64))
    names = Names()
    raw = np.array([b"INPUT", b"OUTPUT", b"", b"INPUT"], "S32")
    # WHEN names come twice
    for _ in range(2):
        ids = names.intern(raw)
        # THEN each is what it was
        assert [names.text(number) for number in ids] == ["INPUT", "OUTPUT", "", "INPUT"]


def test_a_stream_with_a_new_name_in_every_record_does_not_fill_the_memory() -> None:
    names = Names(limit=100)
    for start in range(0, 1000, 50):
        ids = names.intern(np.array([b"n%d" % at for at in range(start, start + 50)], "S16"))
    assert len(names) <= 101
    assert names.text(int(ids[-1])) == TOO_MANY
    again = names.intern(np.array([b"n5"], "S16"))
    assert names.text(int(again[0])) == "n5"


def test_names_in_records_of_other_widths_and_strides_are_read_right() -> None:
    records = np.zeros(3, [("x", "u1"), ("name", "S16"), ("y", "u1")])
    records["name"] = [b"a", b"b", b"a"]
    names = Names()
    ids = names.intern(records["name"][::-1])
    assert [names.text(number) for number in ids] == ["a", "b", "a"]
    assert len(names.intern(records["name"][:0])) == 0


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 1000)), max_size=20), max_size=10
    )
)
def test_what_was_told_last_is_remembered(batches: list[list[tuple[int, int]]]) -> None:
    recent, truth = Recent(1000), {}
    for batch in batches:
        keys, values = (
            np.array(side, np.uint64) for side in ([k for k, _ in batch], [v for _, v in batch])
        )
        recent.put(keys, values)
        truth.update(batch)
        found, known = recent.get(np.arange(30, dtype=np.uint64))
        assert {k: int(found[k]) for k in range(30) if known[k]} == truth


def test_the_oldest_is_forgotten_first() -> None:
    recent = Recent(100)
    for start in range(0, 1000, 10):
        keys = np.arange(start, start + 10, dtype=np.uint64)
        recent.put(keys, keys)
        assert len(recent) <= 100
        assert recent.get(keys)[1].all()
    assert not recent.get(np.arange(100, dtype=np.uint64))[1].any()
