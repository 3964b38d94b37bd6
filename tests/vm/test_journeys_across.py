# SPDX-License-Identifier: GPL-2.0-only
"""One journey across the host: veth, bridge, NAT and tunnels, from namespace to namespace."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from ipttrace.trace.row import Row
from tests.vm.conftest import SHARED, Capture, captured
from tests.vm.hosted import (
    CONTAINER,
    EVERYONE,
    HOST,
    INNER,
    NAMES,
    ONE,
    OUTSIDE,
    PUBLISHED,
    TUNNELS,
    TWO,
    WEB,
    Exchanged,
    Hosted,
    bound,
    exchange,
    hosted,
)
from tests.vm.paired import Hits, hits, load
from tests.vm.plain import Plain

pytestmark = SHARED

COUNT = 7
THREE, FOUR = "203.0.113.3", "203.0.113.4"
COPIED = 77  # a port
DUP = f"""table ip copies {{
    chain pre {{
        type filter hook prerouting priority -150; policy accept;
        iifname "br0" udp dport {COPIED} dup to {TWO} device "br0"
    }}
}}
"""
# Namespace, hook, table, source and its port, destination and its port, path.
Step = tuple[str, str, str, str, int, str, int, str]
ENGINES = pytest.mark.parametrize("engine", ["bpf", "auto"])


@pytest.fixture(scope="module")
def made() -> Iterator[Hosted]:
    with hosted(tuple(TUNNELS)) as one:
        yield one


def journeys(capture: Capture, made: Hosted) -> list[list[Row]]:
    """The rows of each journey, in order of their times; printed for who reads a failure."""
    names, found = made.inodes(), defaultdict(list)
    for row in sorted(capture.rows, key=lambda row: row.time):
        found[row.journey].append(row)
    print(capture.books, capture.trace.notes)
    for number, rows in found.items():
        print(f"journey {number:x}")
        for row in rows:
            parent = f"{row.parent:x}" if row.parent else "-"
            what = row.station or f"{row.hook} {row.tables} {row.table}"
            print(f"  {names.get(row.netns)} {what} {row.src}:{row.sport} {row.dst}:{row.dport}"
                  f" {row.proto} {way(row)} {row.verdict} skb {row.skb:x} call {row.call:x}"
                  f" parent {parent} len {row.len}")  # fmt: skip
    return list(found.values())


def way(row: Row) -> str:
    return ">".join(f"{step.chain}:{step.rulenum}" for step in row.path)


def steps(rows: list[Row], made: Hosted) -> list[Step]:
    names = made.inodes()
    return [
        (names[row.netns], row.hook or "", row.table, row.src, row.sport or 0, row.dst,
         row.dport or 0, way(row))
        for row in rows
    ]  # fmt: skip


def out_and_back(one: Exchanged) -> list[list[Step]]:
    """From container one to the world outside, behind MASQUERADE, and back."""
    inner = (ONE, one.sent, OUTSIDE, NAMES)
    outer = (HOST, one.came, OUTSIDE, NAMES)
    back = (OUTSIDE, NAMES, ONE, one.sent)
    return [
        [
            ("one", "OUTPUT", "container", *inner, "out:1>out:2"),
            ("host", "PREROUTING", "nat", *inner, "PREROUTING:2"),
            ("host", "FORWARD", "filter", *inner, "FORWARD:2>DOCKER:2>FORWARD:4"),
            ("host", "POSTROUTING", "nat", *inner, "POSTROUTING:1"),
            ("outside", "INPUT", "container", *outer, "in:1>in:2"),
        ],
        [
            ("outside", "OUTPUT", "container", OUTSIDE, NAMES, HOST, one.came, "out:1>out:2"),
            ("host", "FORWARD", "filter", *back, "FORWARD:2>DOCKER:2>FORWARD:3"),
            ("one", "INPUT", "container", *back, "in:1>in:3"),
        ],
    ]


def in_and_back(one: Exchanged) -> list[list[Step]]:
    """From outside to container two, by DNAT, and back."""
    outer = (OUTSIDE, one.sent, HOST, PUBLISHED)
    inner = (OUTSIDE, one.sent, TWO, WEB)
    back = (TWO, WEB, OUTSIDE, one.sent)
    return [
        [
            ("outside", "OUTPUT", "container", *outer, "out:1>out:2"),
            ("host", "PREROUTING", "nat", *outer, "PREROUTING:1"),
            ("host", "FORWARD", "filter", *inner, "FORWARD:2>DOCKER:1"),
            ("host", "POSTROUTING", "nat", *inner, "POSTROUTING:2"),
            ("two", "INPUT", "filter", *inner, "INPUT:2"),
        ],
        [
            ("two", "OUTPUT", "filter", *back, "OUTPUT:1"),
            ("host", "FORWARD", "filter", *back, "FORWARD:2>DOCKER:2>FORWARD:3"),
            ("outside", "INPUT", "container", HOST, PUBLISHED, OUTSIDE, one.sent, "in:1>in:3"),
        ],
    ]


def talk(made: Hosted) -> list[list[list[Step]]]:
    """COUNT datagrams and answers of each kind; returns the journeys that they make."""
    found = []
    with bound(made.outside, OUTSIDE, NAMES) as names, bound(made.two, TWO, WEB) as web:
        for _ in range(COUNT):
            to = (OUTSIDE, NAMES)
            found.append(out_and_back(exchange((made.one, ONE), to, names, HOST)))
            to = (HOST, PUBLISHED)
            found.append(in_and_back(exchange((made.outside, OUTSIDE), to, web, OUTSIDE)))
    return found


def counted(made: Hosted) -> dict[str, Hits]:
    """What the rules with counters have counted, legacy ones too."""
    found = made.two.counters(4).items()
    legacy = Counter({key: value[0] for key, value in found if key[2]})  # 0: a policy
    return {**made.counted(), "two": legacy}


@ENGINES
def test_a_packet_has_one_journey_through_all_namespaces(made: Hosted, engine: str) -> None:
    # WHEN container one asks the world outside, and that asks container two
    before = counted(made)
    with captured("udp", netns="all", engine=engine) as capture:
        talked = talk(made)
        expected = [one for each in talked for one in each]
        capture.wait_rows(sum(map(len, expected)), set(made.inodes()))
    # THEN each way is one journey, with the addresses of each namespace and its rules' numbers
    found = journeys(capture, made)
    assert sorted(steps(rows, made) for rows in found) == sorted(expected)
    assert all(len({row.skb for row in rows}) == 1 for rows in found)
    assert {row.parent for row in capture.rows} == {None}
    # AND all rules have been hit as often as the kernel has counted
    for name, rules in counted(made).items():
        inode = vars(made)[name].inode
        rows = [row for row in capture.rows if row.netns == inode]
        numbers = Counter({rule: count - before[name][rule] for rule, count in rules.items()})
        assert +hits(rows, rules) == +numbers, name
    # AND conntrack has each connection with the addresses of its first and of its last step
    listed = made.host.run("cat", "/proc/net/nf_conntrack").stdout
    for asked, answered in talked:
        both = (
            f"src={src} dst={dst} sport={sport} dport={dport} "
            for _, _, _, src, sport, dst, dport, _ in (asked[0], answered[0])
        )
        assert all(one in listed for one in both)


@ENGINES
def test_a_packet_is_followed_where_nat_hides_it_from_the_filter(made: Hosted, engine: str) -> None:
    # GIVEN a filter for what the sender sees
    expr = f"udp and (src host {ONE} or dst port {PUBLISHED})"
    # The module knows no packet that EXPR does not match: beside it, not in legacy tables.
    hidden = {"bpf": set(), "auto": {"two"}}[engine]
    with captured(expr, netns="all", engine=engine) as capture:
        expected = [
            [step for step in each[0] if step[0] not in hidden] for each in talk(made)
        ]  # fmt: skip
        capture.wait_rows(sum(map(len, expected)), set(made.inodes()))
    found = journeys(capture, made)
    # THEN the rows behind NAT are of the same journey, and those of the answers are not there
    assert sorted(steps(each, made) for each in found) == sorted(expected)


@ENGINES
def test_a_tunnels_packet_has_rows_with_both_headers(made: Hosted, engine: str) -> None:
    # WHEN the host sends through each tunnel
    ends = [(INNER[0].format(n), INNER[1].format(n)) for n in range(len(TUNNELS))]
    expr = f"udp dst port {NAMES}"
    with captured(expr, netns="all", engine=engine) as capture:
        for near, far in ends:
            with bound(made.outside, far, NAMES) as there, bound(made.host, near) as here:
                for _ in range(COUNT):
                    here.sendto(b"through", (far, NAMES))
                    assert there.recv(64) == b"through"
        capture.wait_rows(4 * COUNT * len(ends), set(made.inodes()))
    # THEN the journey goes from the inner addresses to the outer ones, and back
    found = journeys(capture, made)
    ways: Counter[tuple[tuple[str, str, str], ...]] = Counter()
    for rows in found:
        way: list[tuple[str, str, str]] = []
        for row in rows:
            one = (made.inodes()[row.netns], row.src, row.dst)
            if not way or way[-1] != one:
                way.append(one)
        ways[tuple(way)] += 1
    assert ways == {
        (
            ("host", near, far),
            ("host", HOST, OUTSIDE),
            ("outside", HOST, OUTSIDE),
            ("outside", near, far),
        ): COUNT
        for near, far in ends
    }


@ENGINES
def test_a_copy_of_a_bridge_names_its_original(made: Hosted, engine: str) -> None:
    # WHEN container one sends to all, so that the bridge copies
    expr = f"udp and dst host {EVERYONE}"
    with captured(expr, netns="all", engine=engine) as capture:
        with bound(made.two, "", WEB) as web, bound(made.one, ONE) as sender:
            for _ in range(COUNT):
                sender.sendto(b"all", (EVERYONE, WEB))
                assert web.recv(64) == b"all"
        capture.wait_rows(4 * COUNT, set(made.inodes()))
    found = journeys(capture, made)
    names = made.inodes()
    ways = Counter(tuple(dict.fromkeys(names[row.netns] for row in rows)) for rows in found)
    # THEN the host gets the packet itself, and container two the copy
    # AND container one has another copy, of its own broadcast
    assert ways == {("one", "host"): COUNT, ("two",): COUNT, ("one",): COUNT}
    # AND the copy's calls have the original's last one before the copy as their parent
    calls = {row.call: row for row in capture.rows}
    for rows in found:
        for row in rows:
            if row.hook == "INPUT" and names[row.netns] != "host":
                assert row.parent is not None
                parent = calls[row.parent]
                assert (names[parent.netns], parent.hook) == ("one", "OUTPUT")
            else:
                assert row.parent is None


@pytest.fixture
def attached(made: Hosted) -> Iterator[tuple[Plain, Plain]]:
    """Two containers that share the host's outer device, each with a macvlan on it."""
    with Plain("ipt-three") as three, Plain("ipt-four") as four:
        for plain, address in ((three, THREE), (four, FOUR)):
            plain.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            words = f"mv0 link wan netns {plain.name} type macvlan mode bridge"
            made.host.run("ip", "link", "add", *words.split())
            plain.run("ip", "address", "add", f"{address}/24", "dev", "mv0")
            plain.run("ip", "link", "set", "mv0", "up")
            load(plain, CONTAINER.format(port=NAMES))
        yield three, four


@ENGINES
def test_a_packet_of_a_macvlan_has_one_journey(
    made: Hosted, attached: tuple[Plain, Plain], engine: str
) -> None:
    three, four = attached
    names = {**made.inodes(), three.inode: "three", four.inode: "four"}
    # WHEN a container sends to the world outside, and to another one on the same device
    with captured(f"udp dst port {NAMES}", netns="all", engine=engine) as capture:
        for to, plain in ((OUTSIDE, made.outside), (FOUR, four)):
            with bound(plain, to, NAMES) as there, bound(three, THREE) as here:
                for _ in range(COUNT):
                    here.sendto(b"over", (to, NAMES))
                    assert there.recv(64) == b"over"
        capture.wait_rows(2 * 2 * COUNT, set(names))
    found = journeys(capture, made)
    ways = Counter(tuple((names[row.netns], row.hook, way(row)) for row in rows) for rows in found)
    # THEN each packet has one journey, from the one's rules to the other's
    assert ways == {
        (("three", "OUTPUT", "out:1>out:2"), (there, "INPUT", "in:1>in:2")): COUNT
        for there in ("outside", "four")
    }


@ENGINES
def test_what_dup_sends_to_a_container_names_its_original(made: Hosted, engine: str) -> None:
    # GIVEN a rule of the host that sends a copy of each packet to container two
    load(made.host, DUP)
    made.two.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    names = made.inodes()
    try:
        with captured(f"udp dst port {COPIED}", netns="all", engine=engine) as capture:
            with bound(made.outside, OUTSIDE, COPIED) as there, bound(made.one, ONE) as here:
                for _ in range(COUNT):
                    here.sendto(b"twice", (OUTSIDE, COPIED))
                    assert there.recv(64) == b"twice"
            dropped = made.two.counters(4)["filter", "FORWARD", 0][0]
            capture.wait_rows(6 * COUNT, set(names))
    finally:
        made.host.run("nft", "delete", "table", "ip", "copies")
        made.two.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    found = journeys(capture, made)
    calls = {row.call: row for row in capture.rows}
    originals = [rows for rows in found if names[rows[0].netns] == "one"]
    copies = [rows for rows in found if names[rows[0].netns] == "host"]
    assert (len(originals), len(copies), len(found)) == (COUNT, COUNT, 2 * COUNT)
    # THEN the original goes out, and the copy comes to container two, which drops it
    assert {names[rows[-1].netns] for rows in originals} == {"outside"}
    assert {(names[rows[-1].netns], rows[-1].verdict) for rows in copies} == {("two", "DROP")}
    assert dropped >= COUNT
    # AND the copy is of the original, in the run of that rule
    for rows in copies:
        assert rows[0].parent is not None
        parent = calls[rows[0].parent]
        assert (names[parent.netns], parent.table) == ("host", "copies")
