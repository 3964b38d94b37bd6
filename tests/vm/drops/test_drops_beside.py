# SPDX-License-Identifier: GPL-2.0-only
"""Drops beside each engine: one packet, the same number, and no station before its rows."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import call_in
from ipttrace.stream.frames import Kind
from tests.vm.conftest import SHARED
from tests.vm.forked import Agent, until
from tests.vm.plain import LOOPBACK, listening, raw_and_filter

pytestmark = SHARED

COUNT = 23


@pytest.mark.parametrize("engine", ["kernel", "bpf", "netlink", "auto"])
def test_drops_by_a_rule_have_the_number_of_their_rows(tmp_path: Path, engine: str) -> None:
    # GIVEN a rule that drops, and an agent with drops
    with listening(raw_and_filter("-A INPUT -p udp --dport 99 -j DROP")) as plain:
        ready = tmp_path / "ready"
        options = {"engine": engine, "netns": plain.name, "drops": True}
        with Agent(ready_file=ready, **options) as agent:
            assert until(lambda: (agent.read(0.1), ready.exists())[1]), agent.stderr

            def stations() -> list[int]:
                agent.read(0.1)
                found = [one for one in agent.frames if one.kind == Kind.STATION]
                return [int(skb) for one in found for skb in one.records["skb"]]

            # WHEN packets meet it
            def send() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    for _ in range(COUNT):
                        one.sendto(b"x", (LOOPBACK[4], 99))

            call_in(plain.name, send)
            assert until(lambda: len(stations()) >= COUNT), agent.stderr
            agent.send(json.dumps({"cmd": "stop"}).encode())
            agent.drain()
            assert agent.wait() == 0
            # THEN each is recorded, behind the entries of the same packets
            assert len(stations()) == COUNT
            seen: set[int] = set()
            for frame in agent.frames:
                if frame.kind == Kind.ENTRY:
                    seen |= set(frame.records["skb"].tolist())
                elif frame.kind == Kind.STATION and engine != "netlink":
                    assert set(frame.records["skb"].tolist()) <= seen
            # AND the books balance
            books = next(one for one in agent.frames if one.kind == Kind.END).json["stations"]
            assert books["due"] == books["delivered"] + books["lost"] + books["missed"]
            assert books["delivered"] >= COUNT
