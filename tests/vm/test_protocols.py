# SPDX-License-Identifier: GPL-2.0-only
"""Real packets of all kinds have rows with the right protocol, ports and lengths."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest

from ipttrace.lab.network import Network
from ipttrace.trace.row import Row
from tests.lab import scenarios
from tests.lab.scenarios import COUNT
from tests.vm.conftest import SHARED, captured

pytestmark = SHARED

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
HEADER = {4: 20, 6: 40}


@dataclass(frozen=True)
class Kind:
    """What the rows of a scenario must contain; `size` is without the IP header."""

    name: str
    proto: tuple[str, str]  # IPv4, IPv6
    size: int
    dport: int | None = None
    icmp: tuple[str, str] | None = None
    answer: tuple[str, str] | None = None  # ICMP type and code of the answer
    families: tuple[int, ...] = (4, 6)
    flows: int = 1


ECHO, REPLY = ("8/0", "128/0"), ("0/0", "129/0")
PING = ("ICMP", "ICMPv6")
KINDS = [
    Kind("ping", PING, 64, icmp=ECHO, answer=REPLY),
    # The options header between IPv6 and ICMPv6 is skipped.
    Kind("ping with destination options", PING, 72, icmp=ECHO, answer=REPLY, families=(6,)),
    Kind("UDP", ("UDP", "UDP"), 16, 5001),
    Kind("SCTP", ("SCTP", "SCTP"), 32, 9, flows=COUNT),
    Kind("GRE", ("GRE", "GRE"), 32),
    Kind("ESP", ("ESP", "ESP"), 72),
]


def rows_of(network: Network, name: str, family: int) -> dict[str, list[Row]]:
    """role → its rows of one run of the scenario, by time."""
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
def test_every_table_shows_the_protocol_ports_and_length(
    network: Network, kind: Kind, family: int
) -> None:
    rows = rows_of(network, kind.name, family)
    which = 0 if family == 4 else 1
    icmp = None if kind.icmp is None else kind.icmp[which]
    everything = [row for role in rows.values() for row in role]
    sent = [row for row in everything if row.icmp == icmp]
    # THEN all 23 have rows, in the first table and in the last
    assert len(at(rows["client"], "OUTPUT", "filter")) == COUNT
    assert len(at(rows["server"], "INPUT", "filter")) == COUNT
    for row in sent:
        assert row.proto == kind.proto[which]
        assert row.dport == kind.dport
        assert (row.sport is None) == (kind.dport is None)
        assert row.frag is None
        assert row.flags is None
    assert {row.len for row in sent} == {HEADER[family] + kind.size}
    # AND all other rows are of the answers
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
def test_an_icmp_error_belongs_to_the_flow_of_the_packet_inside_it(
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
    # The first answer to a translated packet reaches the raw table before any row has
    # both of its tuples.
    assert len(apart) <= 1
    assert {(row.hook, row.table) for row in apart} <= {("PREROUTING", "raw")}


@FAMILIES
def test_fragments_have_rows_of_their_own_in_one_flow(network: Network, family: int) -> None:
    # GIVEN datagrams of 4,000 bytes
    rows = rows_of(network, "fragments", family)
    size = HEADER[family] + 8 + 4000
    # THEN they are complete at the sender, and where conntrack has reassembled them
    for row in (*rows["client"], *rows["router"]):
        assert (row.frag, row.len, row.dport) == (None, size, 5001)

    # AND three fragments each where nothing has reassembled them
    # (two datagrams may have the same random identification)
    datagrams: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for number, row in enumerate(at(rows["server"], "PREROUTING", "raw")):
        assert row.frag is not None
        datagrams[row.frag.partition(":")[0], number // 3].append(row)
    assert len(datagrams) == COUNT
    header, step = (20, 1480) if family == 4 else (48, 1448)
    offsets = [f"0+:{step}+:{2 * step}"]
    for fragments in datagrams.values():
        ordered = sorted(fragments, key=lambda row: int(offset(row).rstrip("+")))
        assert [":".join(offset(row) for row in ordered)] == offsets
        last = 4008 - 2 * step
        assert [(row.len or 0) - header for row in ordered] == [step, step, last]
        assert {row.proto for row in ordered} == {"UDP"}
        # Only the first has ports.
        assert [row.dport for row in ordered] == [5001, None, None]
        # All the same they are one flow.
        assert len({row.flow for row in ordered}) == 1

    # AND at INPUT IPv4 has reassembled them; IPv6 does that later
    arrived = at(rows["server"], "INPUT", "filter")
    if family == 4:
        assert {(row.frag, row.len, row.dport) for row in arrived} == {(None, size, 5001)}
        assert len(arrived) == COUNT
    else:
        assert len([row for row in arrived if row.frag is not None]) == 3 * COUNT


def offset(row: Row) -> str:
    """The offset of a fragment, as in "1480+"."""
    return (row.frag or "").partition(":")[2]
