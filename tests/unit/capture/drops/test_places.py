# SPDX-License-Identifier: GPL-2.0-only
"""Numbers in place of addresses of code, and the names that they get."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from ipttrace.capture.drops import places
from ipttrace.capture.drops.places import PlaceBook
from ipttrace.capture.libbpf import Libbpf

NAMES = {
    0x100: "bpf_prog_1234_drop+0x10",
    0x200: "kfree_skb_reason+0x7b",
    0x300: "kfree_skb_list_reason+0x1e",
    0x400: "__dev_queue_xmit+0x740",
    0x500: "icmpv6_rcv+0x258",
}
REASONS = {
    0: "SKB_NOT_DROPPED_YET",
    1: "SKB_DROP_REASON_NOT_SPECIFIED",
    2: "SKB_DROP_REASON_NO_SOCKET",
    104: "SKB_DROP_REASON_MAX",
    0xFFFF0000: "SKB_DROP_REASON_SUBSYS_MASK",
}


class Symbols:
    def name(self, address: int) -> str:
        return NAMES.get(address, "")


@pytest.fixture
def book() -> PlaceBook:
    with (
        mock.patch.object(places, "enumerators", return_value=REASONS),
        mock.patch.object(places, "Symbols", Symbols),
    ):
        return PlaceBook(mock.create_autospec(Libbpf))


def words(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def test_a_place_has_the_same_number_each_time_and_is_named_once(book: PlaceBook) -> None:
    stacks = np.zeros((3, 2), np.uint64)
    assert book.places(words(0x400, 0x500, 0x400), stacks).tolist() == [1, 2, 1]
    assert book.take() == {"places": {"1": "__dev_queue_xmit+0x740", "2": "icmpv6_rcv+0x258"}}
    assert book.places(words(0x500), stacks[:1]).tolist() == [2]
    assert book.take() is None


def test_what_has_no_name_is_unknown_and_leaks_no_address(book: PlaceBook) -> None:
    stacks = np.full((1, 2), 0xFFFF_FFFF_8000_0000, np.uint64)
    assert book.places(words(0xFFFF_FFFF_8000_0000), stacks).tolist() == [0]
    assert book.stacks(stacks).tolist() == [0]
    assert book.take() is None


def test_the_caller_counts_not_the_function_that_frees(book: PlaceBook) -> None:
    stack = np.array([[0x100, 0x200, 0x300, 0x400, 0]], np.uint64)
    assert book.places(words(0x300), stack).tolist() == [1]
    assert book.take() == {"places": {"1": "__dev_queue_xmit+0x740"}}


def test_a_stack_begins_behind_the_tracepoint(book: PlaceBook) -> None:
    stack = np.array([[0x100, 0x200, 0x400, 0]], np.uint64)
    assert book.stacks(np.repeat(stack, 2, axis=0)).tolist() == [1, 1]
    assert book.take() == {"stacks": {"1": ["kfree_skb_reason+0x7b", "__dev_queue_xmit+0x740"]}}


def test_reasons_have_the_kernel_s_names_and_unknown_ones_none(book: PlaceBook) -> None:
    book.reasons(np.array([2, 2, 104, 5000, 0xFFFF0000, 0], np.uint32))
    assert book.take() == {"reasons": {"2": "NO_SOCKET"}}


def test_a_handled_message_is_no_drop_unless_the_kernel_says_why(book: PlaceBook) -> None:
    numbers = book.places(words(0x500, 0x500, 0x400), np.zeros((3, 1), np.uint64))
    found = book.handled(numbers, np.array([1, 2, 1], np.uint32))
    assert found.tolist() == [True, False, False]


def test_places_and_stacks_are_bounded(book: PlaceBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_PLACES", 1)
    monkeypatch.setattr(places, "_MOST_STACKS", 1)
    assert book.places(words(0x400, 0x500), np.zeros((2, 1), np.uint64)).tolist() == [1, 0]
    assert sorted(book.stacks(np.array([[0x400], [0x500]], np.uint64)).tolist()) == [0, 1]
