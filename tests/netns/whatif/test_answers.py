# SPDX-License-Identifier: GPL-2.0-only
"""A packet is sent through rules from files: its way, its verdict, how it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.whatif.copies import ROUTER, whatif, write

RULES = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 10.1.0.1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.2.0.2:80
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
-A INPUT -p icmp -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -j WEB
-A WEB -p tcp -m tcp --dport 80 -j ACCEPT
-A WEB -p tcp -m tcp --dport 443 -m limit --limit 5/sec -j ACCEPT
-A WEB -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
COMMIT
"""


@pytest.fixture
def router(folder: Path) -> list[str]:
    rules = folder / "rules.txt"
    rules.write_text(RULES)
    return ["--network", write(folder, ROUTER), "--rules", str(rules)]


def test_a_forwarded_packet_leaves_with_the_address_that_masquerade_gives(
    router: list[str],
) -> None:
    said = whatif(*router, "tcp 10.1.0.2:40000 > 10.1.0.1:8080 in lan0 syn")
    assert said.status == 0, said.errors
    assert said.path == [
        ("nat", "PREROUTING", 1, "rule", "ACCEPT"),
        ("filter", "WEB", 1, "rule", "ACCEPT"),
        ("nat", "POSTROUTING", 1, "rule", "ACCEPT"),
    ]
    (left,) = said.answer["left"]
    assert (left["device"], left["mac_dst"]) == ("wan0", "02:00:00:00:02:02")
    assert (left["src"], left["dst"], left["dport"], left["ttl"]) == (
        *("10.2.0.1", "10.2.0.2", 80),
        63,
    )
    assert said.answer["may_differ"] == []


def test_a_rejected_packet_names_its_rule_and_exits_with_3(router: list[str]) -> None:
    said = whatif(*router, "tcp 10.1.0.2:40000 > 10.2.0.2:25 in lan0")
    assert said.status == 3
    answer = said.answer
    assert (answer["how"], answer["chain"], answer["rulenum"]) == ("rule", "WEB", 3)
    # AND the limit before it is on the way, so that it is named
    assert [(one["what"], one["rulenum"]) for one in answer["may_differ"]] == [("limit", 2)]


def test_a_policy_drops_what_no_rule_takes(router: list[str]) -> None:
    said = whatif(*router, "udp 10.1.0.2:40000 > 10.2.0.2:53 in lan0")
    assert said.status == 3
    assert (said.answer["chain"], said.answer["match"]) == ("FORWARD", "policy")
    # the rule with a limit is for another protocol
    assert said.answer["may_differ"] == []


@pytest.mark.parametrize(
    ("packet", "how", "status"),
    [
        ("icmp 10.1.0.2 > 10.1.0.1 in lan0", "delivered", 0),
        ("tcp 10.1.0.2:1 > 10.9.0.1:80 in lan0 ttl 1", "kernel", 3),
        ("tcp > 10.9.0.1:80 out", "left", 0),
    ],
)
def test_what_happens_outside_the_rules(
    router: list[str], packet: str, how: str, status: int
) -> None:
    said = whatif(*router, packet)
    assert (said.answer["how"], said.status) == (how, status), said


@pytest.mark.parametrize(
    "packet",
    [
        "tcp 10.1.0.2:40000 > 10.2.0.2:443 in lan0 established",
        "tcp 10.2.0.2:443 > 10.2.0.1:40000 in wan0 reply of 10.1.0.2:40000 > 10.2.0.2:443",
        "udp 10.2.0.2:53 > 10.1.0.2:40000 in wan0 reply",
        "icmp 10.2.0.2 > 10.1.0.2 in wan0 reply",
        "icmp 10.2.0.2 > 10.1.0.2 in wan0 port-unreachable related",
        "tcp 10.2.0.2:20 > 10.1.0.2:40000 in wan0 syn related",
    ],
)
def test_a_packet_of_a_known_connection_is_accepted_as_such(router: list[str], packet: str) -> None:
    said = whatif(*router, packet)
    assert said.status == 0, said
    assert ("filter", "FORWARD", 1, "rule", "ACCEPT") in said.path


def test_a_reply_leaves_for_the_address_before_masquerade(router: list[str]) -> None:
    said = whatif(
        *router,
        "tcp 10.2.0.2:443 > 10.2.0.1:40000 in wan0 reply of 10.1.0.2:40000 > 10.2.0.2:443",
    )
    (left,) = said.answer["left"]
    assert (left["device"], left["dst"], left["dport"]) == ("lan0", "10.1.0.2", 40000)


def test_a_user_without_privileges_gets_the_same_answer(router: list[str]) -> None:
    packet = "tcp 10.1.0.2:40000 > 10.1.0.1:8080 in lan0 syn"
    mine, theirs = whatif(*router, packet), whatif(*router, packet, user=65534)
    assert theirs.status == 0, theirs.errors
    assert (mine.path, mine.answer) == (theirs.path, theirs.answer)


def test_wrong_words_exit_with_2_and_a_caret(router: list[str]) -> None:
    said = whatif(*router, "tcp 10.1.0.2:1 > 10.2.0.2:2 on lan0")
    assert said.status == 2
    assert said.errors.splitlines()[-1].strip() == "^^"


def test_a_device_that_does_not_exist_is_named(router: list[str]) -> None:
    said = whatif(*router, "tcp 10.1.0.2:1 > 10.2.0.2:2 in eth7")
    assert (said.status, said.errors) == (
        *(1,),
        "ipttrace: there is no device eth7: lan0, wan0\n",
    )
