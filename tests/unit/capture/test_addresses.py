# SPDX-License-Identifier: GPL-2.0-only
"""Recordings contain no address of the kernel, and still show which packets are the same."""

from __future__ import annotations

import numpy as np

from ipttrace.capture.addresses import HiddenAddresses, siphash
from ipttrace.stream.record import DTYPES, ENTRY, EXIT, RULE, Records

KEY = bytes(range(16))
BASE = 0xFFFF_8880_1234_5600
"""An address as slab caches have them."""


def records(addresses: list[int]) -> list[Records]:
    """Calls of packets at these addresses: socket and conntrack entry of every other one."""
    made = [np.zeros(len(addresses), dtype) for dtype in DTYPES]
    made[ENTRY]["skb"] = made[EXIT]["skb"] = addresses
    made[ENTRY]["sk"][::2] = made[ENTRY]["ct"][::2] = np.array(addresses, np.uint64)[::2] + 64
    made[ENTRY]["call"] = made[RULE]["call"] = np.arange(len(addresses))
    return made


def test_the_hash_is_that_of_the_paper() -> None:
    # Appendix A has the key 00 … 0f; the value is of 00 … 07 in the authors' vectors.
    word = int.from_bytes(bytes(range(8)), "little")
    found = siphash(KEY, np.array([word, 0, word], np.uint64))
    assert [hex(number) for number in found] == ["0x93f5f5799a932462", "0x0", "0x93f5f5799a932462"]


def test_equal_addresses_stay_equal_and_none_stays() -> None:
    # GIVEN more calls than are hashed at a time, of 1,000 packets
    addresses = [BASE + 256 * (turn % 1000) for turn in range(10_007)]
    before, after = records(addresses), records(addresses)
    # WHEN they are hidden
    HiddenAddresses().hide(after)
    # THEN entry and exit still fit together, no address is left, and what is not there is not
    assert np.array_equal(after[ENTRY]["skb"], after[EXIT]["skb"])
    assert len(np.unique(after[ENTRY]["skb"])) == 1000
    for kind, name in ((ENTRY, "skb"), (ENTRY, "sk"), (ENTRY, "ct"), (EXIT, "skb")):
        old, new = before[kind][name], after[kind][name]
        assert np.array_equal(old == 0, new == 0)
        pairs = set(zip(old.tolist(), new.tolist(), strict=True))
        assert len(pairs) == len(set(old.tolist())) == len(set(new.tolist()))
        assert not np.isin(new[new != 0], old).any()
    # AND nothing else has changed
    for kind, part in enumerate(before):
        for name in part.dtype.names or ():
            if name not in ("skb", "sk", "ct"):
                assert np.array_equal(part[name], after[kind][name])


def test_two_armings_cannot_be_compared() -> None:
    one, other = records([BASE]), records([BASE])
    HiddenAddresses().hide(one)
    HiddenAddresses().hide(other)
    assert one[ENTRY]["skb"] != other[ENTRY]["skb"]


def test_no_record_is_no_problem() -> None:
    HiddenAddresses().hide([np.zeros(0, dtype) for dtype in DTYPES])
