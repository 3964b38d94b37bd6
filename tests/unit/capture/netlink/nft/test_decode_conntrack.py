# SPDX-License-Identifier: GPL-2.0-only
"""Conntrack's state in nftables' trace messages, and INVALID, which is the lack of one."""

from __future__ import annotations

import struct

import pytest

from ipttrace.capture.netlink.conntrack import is_reported
from ipttrace.capture.netlink.nft import wire
from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.netlink.nft.nftrace import needs_conntrack
from ipttrace.stream import record
from tests.data.nft_messages import (
    ACCEPT,
    INET,
    SECOND,
    Pipeline,
    attribute,
    batch,
    change_messages,
    flip,
    trace_message,
    udp,
)

CT_ID, CT_DIRECTION, CT_STATUS, CT_STATE = 18, 19, 20, 21  # enum nft_trace_attributes
NEW, ESTABLISHED, RELATED, UNTRACKED = 0x08, 0x02, 0x04, 0x40  # NF_CT_STATE_BIT
TEMPLATE = 0x800


def conntrack(state: int, direction: int = 0, status: int = 0, number: int = 0xFEDCBA98) -> bytes:
    return b"".join(
        (
            attribute(CT_STATE, struct.pack(">I", state)),
            attribute(CT_DIRECTION, bytes([direction])),
            attribute(CT_ID, struct.pack(">I", number)),
            attribute(CT_STATUS, struct.pack(">I", status)),
        )
    )


def rules(genid: int = 1, *, priority: int = 0, hook: int = 1, tracking: bool = True) -> Snapshot:
    """A chain `in`, and whether a rule of the table needs conntrack."""
    info = ChainInfo(hook, priority, "filter", 1, (), [10])
    families = {INET} if tracking else set()
    tables = {(INET, "t"): TableInfo(3, 0, None)}
    return Snapshot(genid, tables, {(INET, "t", "in"): info}, set(), families)


def traced(pipeline: Pipeline, more: bytes = b"", width: int = 512) -> list[str | None]:
    """The states of all rows, after one more packet."""
    one = trace_message(7, "in", 10, ACCEPT, packet=udp(), more=more)
    pipeline.feed(batch([flip(7), one], width=width))
    return [row.ct_state for row in pipeline.rows()]


def pipeline(snapshot: Snapshot, reports: bool = True) -> Pipeline:
    found = Pipeline(snapshot)
    found.decoder.reports_conntrack = reports
    return found


@pytest.mark.parametrize(
    ("state", "direction", "shown", "info"),
    [
        (NEW, 0, "NEW", 2),
        (ESTABLISHED, 0, "ESTABLISHED", 0),
        (ESTABLISHED, 1, "ESTABLISHED", 3),
        (RELATED, 1, "RELATED", 4),
    ],
)
def test_a_state_and_its_direction_are_read(
    state: int, direction: int, shown: str, info: int
) -> None:
    made = pipeline(rules(), reports=False)
    assert traced(made, conntrack(state, direction, 0x18A)) == [shown]
    (row,) = made.rows()
    # THEN of the connection nothing else is known
    assert (row.ct_orig_src, row.ct_mark, row.ct_zone) == (None, None, None)
    raw = made.trace.store.raw(row.index)
    assert (int(raw["ct_info"]), int(raw["ct_status"]), int(raw["ct"])) == (info, 0x18A, 0xFEDCBA98)
    # AND this kernel reports it, whatever its release says
    assert made.decoder.reports_conntrack


def test_untracked_is_said_and_not_taken_for_invalid() -> None:
    assert traced(pipeline(rules()), attribute(CT_STATE, struct.pack(">I", UNTRACKED))) == [
        "UNTRACKED"
    ]


@pytest.mark.parametrize(
    "more",
    [
        conntrack(NEW, status=TEMPLATE),
        conntrack(0),
        conntrack(NEW | RELATED),
        conntrack(1 << 31),
    ],
    ids=["template", "none", "two", "unknown"],
)
def test_a_template_or_a_state_that_is_none_is_empty(more: bytes) -> None:
    assert traced(pipeline(rules()), more) == [None]


@pytest.mark.parametrize(
    ("snapshot", "shown"),
    [
        (rules(), "INVALID"),
        (rules(hook=0, priority=-300), None),
        (rules(hook=3, priority=-200), None),
        (rules(hook=0, priority=-199), "INVALID"),
        (rules(hook=2, priority=-300), "INVALID"),
        (rules(hook=5), None),
        (rules(tracking=False), None),
    ],
    ids=["filter", "raw", "beside", "mangle", "forward", "ingress", "unused"],
)
def test_no_state_is_invalid_only_behind_conntrack(snapshot: Snapshot, shown: str | None) -> None:
    assert traced(pipeline(snapshot)) == [shown]
    # AND nothing is known of a kernel that does not report states
    assert traced(pipeline(snapshot, reports=False)) == [None]


def test_a_message_that_was_cut_is_not_invalid() -> None:
    whole = len(trace_message(7, "in", 10, ACCEPT, packet=udp(), more=conntrack(NEW)))
    assert traced(pipeline(rules()), conntrack(NEW), width=whole - 40) == [None]


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_while_the_first_rule_that_needs_conntrack_comes_or_goes_nothing_is_invalid(
    before: bool, after: bool
) -> None:
    made = pipeline(rules(tracking=before))
    made.feed(batch(change_messages(2)))
    made.generations.change(2, SECOND, 2, rules(2, tracking=after))
    assert traced(made) == [None]


def test_attributes_of_any_length_are_bounded() -> None:
    for kind in (CT_ID, CT_DIRECTION, CT_STATUS, CT_STATE):
        for size in (0, 1, 3, 64):
            traced(pipeline(rules()), attribute(kind, b"\xff" * size) + b"\xff\xff\x15\0")
    assert traced(pipeline(rules()), attribute(CT_STATE, b"\0")) == ["INVALID"]


def test_rules_that_need_conntrack_are_recognised_by_their_expressions() -> None:
    ct = wire._expression(b"ct", wire.number(1, 1), wire.number(2, 0))
    match = wire._expression(b"match", wire.text(1, b"conntrack"))
    comment = wire._expression(b"cmp", wire.attribute(3, b"\x07\0\1\0ct\0\0conntrack\0"))
    assert needs_conntrack(comment + ct)
    assert needs_conntrack(match)
    assert not needs_conntrack(comment)
    assert not needs_conntrack(wire.trace())
    for at in range(len(ct)):
        needs_conntrack(ct[:at])


def test_releases_that_report_conntrack_s_state() -> None:
    assert [is_reported(one) for one in ("6.16.0", "6.18.44-fc", "7.2-rc1", "10.0")] == [True] * 4
    assert not any(map(is_reported, ("6.12.117+deb12", "6.1.0-56", "5.16", "", "x.y", "6")))
    assert record.CT_STATE
