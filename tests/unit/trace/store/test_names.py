# SPDX-License-Identifier: GPL-2.0-only
"""Names as ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays.hashing import Hash
from ipttrace.trace.store.names import TOO_MANY, FullNames, Names


@given(st.lists(st.lists(st.binary(max_size=16), max_size=30), max_size=5))
def test_every_name_is_returned_clean(batches: list[list[bytes]]) -> None:
    names = Names()
    full = FullNames(names)
    for batch in batches:
        ids = full.intern(np.array(batch, "S16"))
        assert ids.dtype == np.uint32
        shown = [names.text(number) for number in ids]
        assert shown == [clean(raw.split(b"\0", 1)[0]) for raw in batch]


def test_a_name_has_one_id_in_fields_of_any_width_and_padding() -> None:
    names = Names()
    narrow = FullNames(names).intern(np.array([b"eth0", b"eth0\0garbage"], "S16"))
    wide = FullNames(names).intern(np.array([b"eth0"], "S32"))
    assert narrow[0] == narrow[1] == wide[0] == names.find("eth0")


def test_names_with_equal_hashes_keep_separate_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN a hash that is equal for all names
    monkeypatch.setattr(Hash, "quick", lambda self, words: np.zeros(len(words[0]), np.uint64))
    names = Names()
    full = FullNames(names)
    raw = np.array([b"INPUT", b"OUTPUT", b"", b"INPUT"], "S32")
    # WHEN names occur twice
    for _ in range(2):
        ids = full.intern(raw)
        # THEN each keeps its id
        assert [names.text(number) for number in ids] == ["INPUT", "OUTPUT", "", "INPUT"]


def test_endless_new_names_use_bounded_memory() -> None:
    names = Names(limit=100)
    full = FullNames(names)
    for start in range(0, 1000, 50):
        ids = full.intern(np.array([b"n%d" % at for at in range(start, start + 50)], "S16"))
    assert len(names) <= 101
    assert names.text(int(ids[-1])) == TOO_MANY
    again = full.intern(np.array([b"n5"], "S16"))
    assert names.text(int(again[0])) == "n5"


def test_names_are_read_from_records_of_any_width_and_stride() -> None:
    records = np.zeros(3, [("x", "u1"), ("name", "S16"), ("y", "u1")])
    records["name"] = [b"a", b"b", b"a"]
    names = Names()
    ids = FullNames(names).intern(records["name"][::-1])
    assert [names.text(number) for number in ids] == ["a", "b", "a"]
    assert len(FullNames(names).intern(records["name"][:0])) == 0


LONG = "endpoint-ZWRBQNPI-kube-system/kube-dns/udp/dns__10.244.0.4/53"


def test_a_long_name_is_whole_once_a_frame_has_told_it() -> None:
    names = Names()
    full = FullNames(names)
    raw = np.array([b"endpoint-ZWRBQNPI-kube-sys~9ffc", b"INPUT"], "S32")
    assert [names.text(one) for one in full.intern(raw)] == [raw[0].decode(), "INPUT"]
    full.learn({"names": {raw[0].decode(): LONG}})
    assert [names.text(one) for one in full.intern(raw)] == [LONG, "INPUT"]
    # AND another host's records with that short name are of another name
    other = FullNames(names)
    other.learn({"names": {raw[0].decode(): LONG + "4"}})
    assert [names.text(one) for one in other.intern(raw)] == [LONG + "4", "INPUT"]


@pytest.mark.parametrize(
    "frame",
    [{}, {"names": []}, {"names": {"a": 1}}, {"names": {"a": "x" * 1025}}],
)
def test_a_malformed_frame_of_names_is_refused(frame: dict[str, object]) -> None:
    with pytest.raises(StreamError, match="malformed names"):
        FullNames(Names()).learn(frame)


def test_endless_full_names_use_bounded_memory() -> None:
    names = Names()
    full = FullNames(names)
    for start in range(0, 50_000, 1000):
        full.learn({"names": {f"{at:031}": f"{at:01000}" for at in range(start, start + 1000)}})
    raw = np.array([f"{at:031}".encode() for at in (0, 49_999)], "S32")
    assert [len(names.text(one)) for one in full.intern(raw)] == [1000, 31]
