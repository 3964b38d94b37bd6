# SPDX-License-Identifier: GPL-2.0-only
"""Rules of well-known programs are restored as they are, and packets meet them as expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipttrace.whatif.answer.ask import Answer, ask
from ipttrace.whatif.copy.running import running
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.packet.words import parse
from ipttrace.whatif.snapshot.files import read_rules
from ipttrace.whatif.snapshot.model import Snapshot
from tests.netns.whatif import programs
from tests.netns.whatif.copies import need_namespaces

PROGRAMS = {
    "docker": (programs.DOCKER_NETWORK, programs.DOCKER, programs.DOCKER_PACKETS),
    "kube-proxy": (programs.KUBE_NETWORK, programs.kube(1000), programs.KUBE_PACKETS),
    "ufw": (programs.UFW_NETWORK, programs.UFW, programs.UFW_PACKETS),
    "firewalld": (programs.LAN_NETWORK, programs.FIREWALLD, programs.FIREWALLD_PACKETS),
    "fw4": (programs.LAN_NETWORK, programs.FW4, programs.FW4_PACKETS),
}


def outcome(answer: Answer) -> tuple[str, str, str]:
    fate = answer.fate
    if fate.how == "left":
        return fate.how, fate.left[0].device, fate.left[0].dst
    return fate.how, (fate.row.chain or "") if fate.how == "rule" and fate.row else "", ""


@pytest.mark.parametrize("name", PROGRAMS)
def test_ten_packets_meet_the_rules_as_expected(folder: Path, name: str) -> None:
    need_namespaces()
    network, rules, expected = PROGRAMS[name]
    # GIVEN the rules as a file, and a copy of the network with them
    path = folder / "rules"
    path.write_text(rules)
    snapshot: Snapshot = replace(network, rulesets=read_rules(str(path)))
    found = {}
    with running(snapshot) as copy:
        assert copy.notes == []
        # WHEN each packet is sent
        for words in expected:
            packet = parse(words)
            assert isinstance(packet, Packet)
            found[words] = outcome(ask(copy, packet))
    # THEN it meets what reading the rules says
    assert len(expected) == 10
    assert found == expected


def test_what_depends_on_more_than_the_packet_is_named(folder: Path) -> None:
    need_namespaces()
    path = folder / "rules"
    path.write_text(programs.UFW)
    with running(replace(programs.UFW_NETWORK, rulesets=read_rules(str(path)))) as copy:
        packet = parse("tcp 198.51.100.1:5000 > 192.0.2.10:22 in eth0 syn")
        assert isinstance(packet, Packet)
        named = [(one.what, one.chain, one.rulenum) for one in ask(copy, packet).differs]
    assert named == [("recent", "ufw-user-input", 1), ("recent", "ufw-user-input", 2)]
