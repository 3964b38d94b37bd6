# SPDX-License-Identifier: GPL-2.0-only
"""The lines of the detail say what is known of a connection and of a bridge, and no more."""

from __future__ import annotations

from typing import Any

from ipttrace.stream import record
from ipttrace.trace.neighbours.reach import Reach
from ipttrace.tui.detail.lines import KnownNames, lines
from tests.unit.trace.story.test_story import forwarded, story_of


def text_of(**fields: Any) -> str:
    """The detail of a packet with these fields of its record."""
    story = story_of(forwarded(**{"flags": record.F_FOLLOWED, **fields}), 3)
    made = lines(story, 200, KnownNames())
    return "\n".join("".join(text for text, _ in line.cells) for line in made)


def test_a_packet_that_conntrack_found_invalid_says_so() -> None:
    text = text_of(ct=0, ct_info=0, ct_flags=record.CT_INVALID)
    assert "Conntrack  INVALID: no entry" in text


def test_what_is_unknown_of_a_connection_is_a_dash() -> None:
    text = text_of(ct_flags=record.CT_STATE, ct_mark=7)
    assert "state NEW" in text
    for name in ("mark", "zone", "orig", "reply"):
        assert f"{name} -" in text.split("Conntrack")[1]


def test_a_bridged_packet_s_ports_are_named() -> None:
    text = text_of(physin=b"veth1", physin_ifindex=4, physout=b"veth2", physout_ifindex=5)
    assert "physin veth1" in text
    assert "physout veth2" in text
    assert "physin" not in text_of()


def test_an_unknown_length_is_a_dash_and_no_change() -> None:
    text = text_of(flags=record.F_FOLLOWED | record.F_NO_LEN, len=0, caplen=20)
    assert "len -" in text
    assert "20 from the network header" in text
    assert "len 40 → " not in text


def test_a_next_hop_that_does_not_answer_is_named() -> None:
    # GIVEN an accepted packet, of whose rows the one that leaves has no usable next hop
    story = story_of(forwarded(), 1)
    last = max(one.row.index for one in story.traversals)
    failed = Reach("FAILED", "10.1.0.66", "lan0")
    names = KnownNames(unreached=lambda row: failed if row.index == last else None)
    for row in (story, story_of(forwarded(), last)):
        text = "\n".join("".join(t for t, _ in line.cells) for line in lines(row, 100, names))
        assert "no ARP: accepted, but 10.1.0.66 on lan0 is FAILED now" in text
    text = "\n".join("".join(t for t, _ in line.cells) for line in lines(story, 100, KnownNames()))
    assert "no ARP" not in text
