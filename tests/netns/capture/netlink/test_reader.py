# SPDX-License-Identifier: GPL-2.0-only
"""The engine reads the kernel's messages completely, and no other sender's."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipttrace.capture.netlink.changes import LegacyChange
from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from tests.data import nft_messages
from tests.netns.loopback import HANG, ROWS, LoopbackNamespace


@pytest.fixture
def engine(namespace: LoopbackNamespace) -> Iterator[NetlinkEngine]:
    one = NetlinkEngine(Options(netns=namespace.name, buffer=1 << 20))
    yield one
    one.close()


def take(engine: NetlinkEngine, until: Callable[[list[Any]], bool]) -> list[Any]:
    """The records, once `until(records)` is true."""
    taken: list[list[Any]] = [[], [], []]
    deadline = time.monotonic() + HANG
    while not until(taken):
        assert time.monotonic() < deadline, list(map(len, taken))
        engine.buffers.wait(0.05)
        for kind, records in enumerate(engine.take()):
            taken[kind] += list(records)
    return taken


def test_messages_that_another_program_sends_are_ignored(
    namespace: LoopbackNamespace, engine: Any
) -> None:
    # GIVEN root of the namespace, who knows the address of the engine's socket
    (traced,) = engine._namespaces.values()
    with namespace.inside():
        forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    # WHEN they send trace messages as the kernel does, and malformed ones
    for packet_id in range(23):
        for one in (
            nft_messages.first_message(packet_id),
            nft_messages.trace_message(packet_id, "in", policy=0),
            b"\0",
        ):
            forger.sendto(one, (traced.mailbox.portid, 0))
    # AND datagrams are traced
    namespace.send(5)
    taken = take(engine, lambda taken: len(taken[0]) >= ROWS * 5)
    forger.close()
    # THEN there are records of the datagrams only
    assert len(taken[0]) == len(taken[2]) == ROWS * 5
    assert engine.books()["refused"] == 0
    assert traced._decoder.unread == 0


def test_names_of_the_greatest_length_do_not_cut_a_message(
    namespace: LoopbackNamespace, engine: Any
) -> None:
    # GIVEN a table and chains with the longest names that nftables allows
    table, first, second = (letter * 255 for letter in "xyz")
    rules = f"""
    add table ip {table}
    add chain ip {table} {second}
    add rule ip {table} {second} udp dport 9 drop
    add chain ip {table} {first} {{ type filter hook output priority 5; }}
    add rule ip {table} {first} udp dport 9 jump {second}
    """
    namespace.run("nft", "-f", "-", text=rules)
    # WHEN a packet traverses them
    with pytest.raises(PermissionError):
        namespace.send(1)
    taken = take(engine, lambda taken: len(taken[0]) >= 2)
    # THEN the complete path is reported
    names = {short.encode(): full for short, full in engine.names.items()}
    (entry,) = [one for one in taken[0] if names.get(one["table"]) == table]
    steps = [one["chain"] for one in taken[1] if one["call"] == entry["call"]]
    assert [names[step] for step in steps] == [first, second]
    assert [one["verdict"] for one in taken[2] if one["call"] == entry["call"]] == [0]
    assert engine.books()["missed"] == 0


@pytest.mark.parametrize("at_once", [True, False], ids=["read at once", "read late"])
def test_rules_that_change_all_the_time_make_no_row_wrong(
    namespace: LoopbackNamespace, engine: Any, at_once: bool
) -> None:
    # GIVEN a rule before which others are inserted, one by one
    taken: list[list[Any]] = [[], [], []]

    def read(count: int) -> None:
        more = take(engine, lambda more: len(more[0]) >= count)
        for kind, records in enumerate(more):
            taken[kind] += records

    # WHEN packets are sent meanwhile
    for turn in range(20):
        namespace.send(5)
        if at_once:
            read(ROWS * 5)
        if turn % 2:
            namespace.run("nft", "insert", "rule", "ip", "t", "in", "udp", "dport", "10", "counter")
        else:
            namespace.run("nft", "add", "rule", "ip", "t", "in", "counter")
    if not at_once:
        read(ROWS * 100)
    # THEN the rule has its number of that time, or none if the ruleset was never read
    calls = [int(one["call"]) for one in taken[0] if one["hook"] == 1]
    numbers = {int(one["call"]): int(one["rulenum"]) for one in taken[1]}
    assert len(calls) == 100
    for at, call in enumerate(calls):
        assert numbers[call] == at // 10 + 1 or (not at_once and numbers[call] == 0), at


def test_a_message_left_unread_while_legacy_rules_change_counts_as_of_neither(
    namespace: LoopbackNamespace,
) -> None:
    # GIVEN a reader that does not keep up
    def rules(comment: str) -> str:
        rule = f"-A INPUT -p udp -m comment --comment {comment} -j ACCEPT"
        return f"*filter\n:INPUT ACCEPT\n{rule}\nCOMMIT\n"

    namespace.run("iptables-legacy-restore", text=rules("old"))
    engine = NetlinkEngine(Options(netns=namespace.name, buffer=1 << 20))
    try:
        while not engine.changes.empty():
            engine.changes.get()
        engine._reader._stored = 1 << 40
        # WHEN a datagram meets the old rules, and the new ones are seen before it is read
        namespace.send(1)
        namespace.run("iptables-legacy-restore", text=rules("new"))
        deadline = time.monotonic() + HANG
        while engine.changes.empty() and time.monotonic() < deadline:
            engine.take()
        engine._reader._stored = 0
        records = take(engine, lambda taken: any(one["table"] == b"filter" for one in taken[0]))
        # THEN nobody claims to know which rule it met: of the chains between the two
        # rulesets, only those that are equal in both have rules
        (entry,) = (one for one in records[0] if one["table"] == b"filter" and one["hook"] == 1)
        known: dict[int, set[str]] = {0: set()}
        while not engine.changes.empty():
            change = engine.changes.get()
            if isinstance(change, LegacyChange):
                known[change.number] = set(change.tables[4, "filter"])
        assert "INPUT" not in known[int(entry["ruleset"])]
    finally:
        engine.close()
