# SPDX-License-Identifier: GPL-2.0-only
"""Packets of all kinds, sent for real, are shown as what they are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest

from ipttrace.lab.network import Network
from ipttrace.trace.row import Row
from tests.lab import scenarios
from tests.lab.scenarios import COUNT
from tests.vm.conftest import captured

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
HEADER = {4: 20, 6: 40}


@dataclass(frozen=True)
class Kind:
    """What each packet of a scenario must look like; `size` is without the IP header."""

    name: str
    proto: tuple[str, str]  # IPv4, IPv6
    size: int
    dport: int | None = None
    icmp: tuple[str, str] | None = None
    answer: tuple[str, str] | None = None  # its icmp
    families: tuple[int, ...] = (4, 6)
    flows: int = 1


ECHO, REPLY = ("8/0", "128/0"), ("0/0", "129/0")
PING = ("ICMP", "ICMPv6")
KINDS = [
    Kind("ping", PING, 64, icmp=ECHO, answer=REPLY),
    # The options header between IPv6 and ICMPv6 is passed over.
    Kind("ping with destination options", PING, 72, icmp=ECHO, answer=REPLY, families=(6,)),
    Kind("UDP", ("UDP", "UDP"), 16, 5001),
    Kind("SCTP", ("SCTP", "SCTP"), 32, 9, flows=COUNT),
    Kind("GRE", ("GRE", "GRE"), 32),
    Kind("ESP", ("ESP", "ESP"), 72),
]


def rows_of(network: Network, name: str, family: int) -> dict[str, list[Row]]:
    """role → its rows of one run of the scenario, in order of time."""
    one = next(one for one in scenarios.scenarios(family) if one.name == name)
    roles = {inode: role for role, inode in network.inodes().items()}
    with captured() as capture:
        assert one.run(network) == one.sent
        capture.wait_rows(scenarios.tally(one.expected).total(), set(roles))
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(capture.rows, key=lambda row: row.time):
        if row.netns in roles:
            assert row.family == family
            found[roles[row.netns]].append(row)
    return found


def at(rows: list[Row], hook: str, table: str) -> list[Row]:
    return [row for row in rows if (row.hook, row.table) == (hook, table)]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        pytest.param(kind, family, id=f"{kind.name} v{family}")
        for kind in KINDS
        for family in kind.families
    ],
)
def test_a_packet_is_shown_as_what_it_is_in_every_table(
    network: Network, kind: Kind, family: int
) -> None:
    rows = rows_of(network, kind.name, family)
    which = 0 if family == 4 else 1
    icmp = None if kind.icmp is None else kind.icmp[which]
    everything = [row for role in rows.values() for row in role]
    sent = [row for row in everything if row.icmp == icmp]
    # THEN all 23 are there, at the first table and at the last
    assert len(at(rows["client"], "OUTPUT", "filter")) == COUNT
    assert len(at(rows["server"], "INPUT", "filter")) == COUNT
    for row in sent:
        assert row.proto == kind.proto[which]
        assert row.dport == kind.dport
        assert (row.sport is None) == (kind.dport is None)
        assert row.frag is None
        assert row.flags is None
    assert {row.len for row in sent} == {HEADER[family] + kind.size}
    # AND what is no answer is nothing else
    others = [row for row in everything if row.icmp != icmp]
    expected = set() if kind.answer is None else {kind.answer[which]}
    assert {row.icmp for row in others} == expected
    # AND packets of one connection, and their answers, are one flow
    flows = {row.flow for role in ("client", "router") for row in rows[role]}
    assert len(flows) == kind.flows


@pytest.mark.parametrize(
    ("name", "code"),
    [("ICMP errors for a closed port", ("3/3", "1/4")), ("time exceeded", ("11/0", "3/0"))],
    ids=["closed port", "time exceeded"],
)
@FAMILIES
def test_an_icmp_error_belongs_to_the_flow_that_it_speaks_of(
    network: Network, family: int, name: str, code: tuple[str, str]
) -> None:
    rows = rows_of(network, name, family)
    mine = [*rows["client"], *rows["router"]]
    datagrams = [row for row in mine if row.proto == "UDP"]
    errors = [row for row in mine if row.proto != "UDP"]
    assert {row.icmp for row in errors} == {code[0 if family == 4 else 1]}
    assert {row.proto for row in errors} == {PING[0 if family == 4 else 1]}
    assert len(at(errors, "INPUT", "filter")) == COUNT
    assert {(row.sport, row.dport) for row in errors} == {(None, None)}

    # THEN the flow is that of the datagrams
    (flow,) = {row.flow for row in datagrams}
    apart = [row for row in errors if row.flow != flow]
    # The first answer to a translated packet reaches the raw table before anything
    # has told how it was translated.
    assert len(apart) <= 1
    assert {(row.hook, row.table) for row in apart} <= {("PREROUTING", "raw")}


@FAMILIES
def test_fragments_are_shown_as_fragments_of_one_datagram(network: Network, family: int) -> None:
    # GIVEN datagrams of 4,000 bytes
    rows = rows_of(network, "fragments", family)
    size = HEADER[family] + 8 + 4000
    # THEN they are whole where they are sent, and where conntrack has put them together
    for row in (*rows["client"], *rows["router"]):
        assert (row.frag, row.len, row.dport) == (None, size, 5001)

    # AND three fragments each where nothing did
    datagrams: dict[str, list[Row]] = defaultdict(list)
    for row in at(rows["server"], "PREROUTING", "raw"):
        assert row.frag is not None
        datagrams[row.frag.partition(":")[0]].append(row)
    assert len(datagrams) == COUNT
    header, step = (20, 1480) if family == 4 else (48, 1448)
    offsets = [f"0+:{step}+:{2 * step}"]
    for fragments in datagrams.values():
        ordered = sorted(fragments, key=lambda row: int(offset(row).rstrip("+")))
        assert [":".join(offset(row) for row in ordered)] == offsets
        last = 4008 - 2 * step
        assert [row.len - header for row in ordered] == [step, step, last]
        assert {row.proto for row in ordered} == {"UDP"}
        # only the first has ports
        assert [row.dport for row in ordered] == [5001, None, None]
        # and still they are one flow
        assert len({row.flow for row in ordered}) == 1

    # AND at INPUT, IPv4 has put them together; IPv6 does that later
    arrived = at(rows["server"], "INPUT", "filter")
    if family == 4:
        assert {(row.frag, row.len, row.dport) for row in arrived} == {(None, size, 5001)}
        assert len(arrived) == COUNT
    else:
        assert len([row for row in arrived if row.frag is not None]) == 3 * COUNT


def offset(row: Row) -> str:
    """ "1480+" of a fragment."""
    return (row.frag or "").partition(":")[2]
