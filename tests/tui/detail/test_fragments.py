# SPDX-License-Identifier: GPL-2.0-only
"""The detail names the fragments of a packet, and shows in words what is wrong with them."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from ipttrace.trace.story import story
from ipttrace.tui.detail.lines import KnownNames, lines
from tests.data import tables
from tests.data.records import MONO
from tests.lab.fragments import piece4
from tests.unit.trace.fragments.test_fragments import (
    DATAGRAM,
    HALVES,
    SIZE,
    Rows,
    timeouts,
    waiting,
    whole4,
)


def detail(rows: Rows, seq: int, width: int = 100) -> str:
    """The section on fragments of a row's detail."""
    told = story(rows.trace.store, seq)
    assert told is not None
    made = lines(told, width, KnownNames(), True)
    assert all(cell_len("".join(part for part, _ in line.cells)) <= width for line in made)
    text = "\n".join("".join(part for part, _ in line.cells) for line in made)
    _, found, rest = text.partition("Fragments  ")
    return rest.partition("Conntrack")[0] if found else ""


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_packet_lists_its_fragments_and_a_fragment_the_packet(width: int) -> None:
    rows = Rows()
    for span in HALVES:
        rows.add(piece4(7, DATAGRAM, *span))
    whole = rows.add(whole4())
    said = detail(rows, whole, width)
    assert "2 fragments, complete" in said
    for seq, text in enumerate(("0–799", "800–1,599")):
        assert f"bytes {text} " in said
        assert f"0x{rows.trace.store.row(seq).journey:x}" in said
    said = detail(rows, 0, width)
    assert "▶ " in said
    assert "put together: journey" in said
    assert f"0x{rows.trace.store.row(whole).journey:x}" in said
    assert width < 80 or "2.00µs later" in said


def test_a_packet_without_fragments_has_no_such_section() -> None:
    rows = Rows()
    assert detail(rows, rows.add(whole4())) == ""


def test_faults_are_told_in_words() -> None:
    rows = Rows()
    waiting(rows)
    for span in ((0, 800), (400, SIZE)):
        rows.add(piece4(7, DATAGRAM, *span))
    short = rows.add(piece4(8, bytes(40), 0, 8, protocol=6))
    portless = rows.add(piece4(9, bytes(40), 0, 0, protocol=6))
    never = rows.add(piece4(10, DATAGRAM, 0, 800))
    assert "! overlaps bytes 400–1,599" in detail(rows, 0)
    assert "! overlaps bytes 0–799" in detail(rows, 1)
    assert "! first fragment too short for the TCP header" in detail(rows, short)
    assert "! first fragment too short for the ports" in detail(rows, portless)
    assert "no row of the packet put together is known" in detail(rows, never)
    rows.tables(*timeouts(3, 30.5), {"mono": MONO + 40 * tables.SECOND})
    said = detail(rows, never)
    assert "! never completed: no row of the packet 30 s after; the kernel gave it up" in said


def test_a_packet_of_very_many_fragments_has_a_bounded_section() -> None:
    rows = Rows()
    for start in range(0, 1600, 8):
        rows.add(piece4(7, DATAGRAM, start, start + 8))
    said = detail(rows, rows.add(whole4()))
    assert "200 fragments, complete" in said
    assert "136 further fragments" in said
