# SPDX-License-Identifier: GPL-2.0-only
"""What is traced over netlink is what happened: every packet, every rule, nothing else."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipttrace.lab.network import ROLES, Network, NetworkError, read_counters
from ipttrace.lab.traffic.server import Server
from tests.lab import way
from tests.lab.scenarios import scenarios
from tests.netns.netlink_lab import Row, path, tally, through, told, tracing, tracing_each, unknown
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace

# A condition and `-j RETURN`: legacy tables tell of it as of any rule, nftables as of a return.
RETURNS = {("filter", "SITE-RULES", 2)}


@pytest.fixture(params=["legacy", "nft"])
def network(request: pytest.FixtureRequest, prefix: str) -> Iterator[Network]:
    if not shutil.which("nft"):
        pytest.skip("nft is not installed")
    try:
        with Network(prefix, backend=request.param) as one, Server(one.server):
            yield one
    except NetworkError as error:
        if "this kernel has no" in str(error):
            pytest.skip(str(error))
        raise


def test_every_scenario_makes_just_the_rows_that_its_rules_say(
    network: Network, tmp_path: Path
) -> None:
    names = {role: network.ns(role) for role in ROLES}
    expected = scenarios()
    with tracing_each(tmp_path, names) as tracers:
        for one in expected:
            assert one.run(network) == one.sent
        rows = {role: tracer.finish() for role, tracer in tracers.items()}
    found = Counter(
        (role, row["hook"], row["table"], path(row), row["verdict"])
        for role, some in rows.items()
        for row in some
    )
    wanted: Counter = Counter()
    for (role, hook, table, steps, verdict), n in way.tally(
        traversal for one in expected for traversal in one.expected
    ).items():
        if network.backend == "nft":
            steps = tuple(
                replace(step, match="return")
                if (table, step.chain, step.rulenum) in RETURNS
                else step
                for step in steps
            )
        wanted[role, hook, table, steps, verdict] += n
    assert (found - wanted, wanted - found) == (Counter(), Counter())
    assert all(unknown(some) for some in rows.values())


@pytest.fixture
def space() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def name(space: RulesetNamespace) -> str:
    return Path(space.path).name


# In comments: what looks like the end of a rule, or is for a terminal.
NASTY = r"evil } { # handle 3 \\"

NATIVE = f"""
table inet n {{
  set s {{ type ipv4_addr; flags interval; elements = {{ 127.0.0.0/8 }}; }}
  map m {{ type ipv4_addr : verdict; elements = {{ 127.0.0.1 : jump four, 127.0.0.2 : drop }}; }}
  chain four {{
    icmp type 3 counter drop
    ip saddr @s counter comment "{NASTY}"
    icmp type echo-reply counter return
    counter
  }}
  chain in {{
    type filter hook input priority 5; policy drop;
    ip saddr vmap @m
    ip6 saddr ::1 counter jump six
    icmp type vmap {{ 0 : accept, 8 : goto last }}
    icmpv6 type {{ 128, 129 }} counter accept
  }}
  chain six {{ meta l4proto udp counter drop; }}
  chain last {{ counter accept; }}
}}
table ip o {{ chain out {{ type route hook output priority -145; policy accept; counter; }}; }}
"""
# The tables of iptables-nft, and of legacy: at INPUT in mangle and filter, and on the way out.
IPTABLES = """*{table}
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:USER - [0:0]
-A INPUT -p udp -j DROP
-A INPUT -j USER
-A OUTPUT -p ICMP -m comment --comment "a \\"test\\" } # handle 3" -j ACCEPT
-A USER -p tcp -j DROP
COMMIT
"""

IN = {
    "nft mangle": "INPUT mangle INPUT:2 USER:2/return INPUT:3/policy ACCEPT",
    "filter": "INPUT filter INPUT:2 USER:2/return INPUT:3/policy ACCEPT",
}
EXPECTED = {
    4: {
        "OUTPUT mangle OUTPUT:1 ACCEPT": 46,  # iptables-nft, priority -150
        "OUTPUT o out:1 out:2/policy ACCEPT": 46,  # -145
        "OUTPUT filter OUTPUT:1 ACCEPT": 46,  # legacy, 0
        IN["nft mangle"]: 46,
        IN["filter"]: 46,
        "INPUT n in:1 four:2 four:4 four:5/return in:3 last:1 ACCEPT": 23,  # 5
        "INPUT n in:1 four:2 four:3/return in:3 ACCEPT": 23,
    },
    6: {
        "OUTPUT mangle OUTPUT:1 ACCEPT": 46,
        "OUTPUT filter OUTPUT:1 ACCEPT": 46,
        IN["nft mangle"]: 46,
        IN["filter"]: 46,
        "INPUT n in:2 six:2/return in:4 ACCEPT": 46,
    },
}


@pytest.mark.parametrize("family", [4, 6])
def test_23_pings_through_all_kinds_of_rules_at_once(
    space: RulesetNamespace, tmp_path: Path, family: int
) -> None:
    six = "6" if family == 6 else ""
    icmp = "ipv6-icmp" if six else "icmp"
    restore = {"nft": "mangle", "legacy": "filter"}
    for kind, table in restore.items():
        text = IPTABLES.replace("{table}", table).replace("ICMP", icmp)
        space.run(f"ip{six}tables-{kind}-restore", input=text)
    space.nft(NATIVE)
    with tracing(tmp_path, name(space)) as tracer:
        space.run("ping", "-c", "23", "-i", "0.002", "-q", "::1" if six else "127.0.0.1")
        tracer.wait(sum(EXPECTED[family].values()))
        rows = tracer.finish()
    rows = [row for row in rows if row["icmp"] in ("8/0", "0/0", "128/0", "129/0")]
    # THEN each request and reply went through exactly these, and nothing is made up
    assert dict(tally(rows)) == EXPECTED[family]
    assert unknown(rows)
    assert Counter(row["icmp"] for row in rows) == (
        {"128/0": 115, "129/0": 115} if six else {"8/0": 138, "0/0": 138}
    )
    # AND in the order of hooks and their priorities
    tables = [row["table"] for row in rows]
    way_of_one = ["mangle", *([] if six else ["o"]), "filter", "mangle", "filter", "n"]
    assert tables == way_of_one * 46
    # AND each rule has counted as many packets as rows went through it
    hits = through(rows)
    for kind, table in restore.items():
        counted = read_counters(space.run(f"ip{six}tables-{kind}-save", "-c"))
        seen = {place[1:]: n for place, n in hits.items() if place[0] == table}
        assert {p[1:]: n for p, (n, _) in counted.items() if n and p[0] == table and p[2]} == {
            place: n for place, n in seen.items() if place[1]
        }
    # AND rules are told in the words of who made them
    texts = {(row["table"], row["chain"], row["rulenum"]): row["rule"] for row in rows}
    own = f'-p {icmp} -m comment --comment "a \\"test\\" }} # handle 3" -j ACCEPT'
    assert texts["mangle", "OUTPUT", 1] == texts["filter", "OUTPUT", 1] == own
    for kind, table in restore.items():
        listed = space.run(f"ip{six}tables-{kind}", "-t", table, "-S", "OUTPUT").splitlines()
        assert listed[1] == f"-A OUTPUT {own}"
    if six:
        assert texts["n", "in", 4] == "icmpv6 type { echo-request, echo-reply } counter accept"
    else:
        assert texts["n", "last", 1] == "counter accept"
        assert texts["n", "in", 3] == (
            "icmp type vmap { echo-reply : accept, echo-request : goto last }"
        )


@pytest.mark.parametrize(("first", "second"), [("legacy", "nft"), ("nft", "legacy")])
def test_what_one_kind_accepts_and_the_other_drops_shows_both_in_their_order(
    space: RulesetNamespace, tmp_path: Path, first: str, second: str
) -> None:
    # GIVEN a table of each kind: the one at priority -150 accepts, the one at 0 drops
    for kind, table, target in ((first, "mangle", "ACCEPT"), (second, "filter", "DROP")):
        rule = ["-A", "INPUT", "-p", "udp", "--dport", "9", "-j", target]
        space.run(f"iptables-{kind}", "-t", table, *rule)
    with tracing(tmp_path, name(space), "udp port 9") as tracer:
        send(space, 9, 23)
        while len(rows := [row for row in tracer.rows if row["hook"] == "INPUT"]) < 46:
            tracer.wait(len(tracer.rows) + 1)
        tracer.finish()
    assert [told(row) for row in rows] == [
        "INPUT mangle INPUT:1 ACCEPT",
        "INPUT filter INPUT:1 DROP",
    ] * 23
    assert [row["rule"] for row in rows[:2]] == [
        f"-p udp -m udp --dport 9 -j {target}" for target in ("ACCEPT", "DROP")
    ]


def send(space: RulesetNamespace, port: int, count: int, payload: bytes = b"hello") -> None:
    with space.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(payload, ("127.0.0.1", port))


def test_just_what_expr_asks_for_is_shown_whoever_else_traces(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN others who trace all that comes and goes, of both kinds
    space.nft("""
    table inet other {
      chain in { type filter hook prerouting priority -400; meta nftrace set 1; }
      chain out { type filter hook output priority -400; meta nftrace set 1; }
    }""")
    for chain in ("PREROUTING", "OUTPUT"):
        space.run("iptables-legacy", "-t", "raw", "-A", chain, "-j", "TRACE")
    space.nft("table ip t { chain c { type filter hook input priority 0; counter; }; }")
    asked = {
        "icmp": None,
        "udp port 53": {(53, b"hello"), (53, b"has")},
        # What nftables has no words for: seen in the packets that came.
        "udp[8] = 0x68 and not udp[9] = 0x61": {(53, b"hello"), (9, b"hello")},
    }
    for number, (expression, wanted) in enumerate(asked.items()):
        with tracing(tmp_path / str(number), name(space), expression) as tracer:
            for port in (53, 9):
                for payload in (b"hello", b"has"):
                    send(space, port, 23, payload)
            space.run("ping", "-c", "23", "-i", "0.002", "-q", "127.0.0.1")
            rows = tracer.finish()
        # THEN all of what was asked for is there, and nothing else
        found = Counter(
            (row["dport"], row["len"] - 28) for row in rows if row["table"] == "t"
        )  # fmt: skip
        if wanted is None:
            assert {row["proto"] for row in rows} == {"ICMP"}
            kinds = Counter(row["icmp"] for row in rows if row["table"] == "t")
            assert (kinds["8/0"], kinds["0/0"]) == (23, 23)
        else:
            assert {row["proto"] for row in rows} == {"UDP"}
            assert found == {(port, len(payload)): 23 for port, payload in wanted}


def sized(rows: list[Row], one: RulesetNamespace) -> int:
    """How many of a namespace's packets have a hundred bytes inside."""
    return sum((row["netns"], row["len"], row["proto"]) == (one.inode, 128, "UDP") for row in rows)


def test_every_namespace_one_that_is_made_meanwhile_too(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    rules = "table ip t { chain c { type filter hook input priority 0; udp dport 9 accept; }; }"
    with (
        ruleset_namespace() as second,
        tracing(tmp_path, "all") as tracer,
        ruleset_namespace() as third,
    ):
        spaces = [space, second, third]
        for one in spaces:
            one.nft(rules)
        # WHEN datagrams come in all three
        for one in spaces:
            while not any(row["netns"] == one.inode for row in tracer.rows):
                send(one, 9, 1)
                with contextlib.suppress(TimeoutError):
                    tracer.wait(len(tracer.rows) + 1, 0.2)
        for one in spaces:
            send(one, 9, 23, bytes(100))
        for one in spaces:
            tracer.wait_until(lambda rows, one=one: sized(rows, one) == 23)
        for one in spaces:
            # (nobody takes them: that is answered)
            rows = [row for row in tracer.rows if row["netns"] == one.inode]
            rows = [row for row in rows if row["proto"] == "UDP"]
            assert set(tally(rows)) == {"INPUT t c:1 ACCEPT"}
        tracer.command.interrupt()


def test_texts_are_right_or_empty_while_rules_are_replaced(
    space: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN rules of which just one takes port 1000 + n, and says so
    def rules(first: int) -> None:
        order = [(first + n) % 5 for n in range(5)]
        space.nft("table ip t\ndelete table ip t\ntable ip t { chain c {\n"
                  "type filter hook input priority 0;\n"
                  + "".join(f"udp dport {1000 + n} accept\n" for n in order) + "}; }")  # fmt: skip
        for kind in ("nft", "legacy"):
            lines = [f"-A INPUT -p udp -m udp --dport {1000 + n} -j ACCEPT\n" for n in order]
            table = "mangle" if kind == "nft" else "filter"
            text = f"*{table}\n:INPUT ACCEPT\n{''.join(lines)}COMMIT\n"
            space.run(f"iptables-{kind}-restore", input=text)

    rules(0)
    texts = {"t": "udp dport {} accept"}
    texts["mangle"] = texts["filter"] = "-p udp -m udp --dport {} -j ACCEPT"
    orders = range(6)
    with tracing(tmp_path, name(space), "udp") as tracer:
        for first in orders:
            if first:
                rules(first)
            # WHEN they are replaced under traffic, and when they stand still
            for n in range(5):
                send(space, 1000 + n, 23)
        last = 1000 + 3
        wanted = {"table": "t", "dport": last, "rule": texts["t"].format(last)}
        while not any(row.items() >= wanted.items() for row in tracer.rows[-50:]):
            send(space, last, 1)
            tracer.wait(len(tracer.rows) + 1)
        rows = [row for row in tracer.finish() if row["hook"] == "INPUT"]
    # THEN every text is its own rule's, or there is none; every number is one that it had
    told_of = Counter(row["table"] for row in rows if row["rule"])
    assert set(told_of) == set(texts)
    for row in rows:
        assert row["rule"] in (None, texts[row["table"]].format(row["dport"]))
        assert row["match"] == "rule"
        assert row["rulenum"] in (None, *((row["dport"] - 1000 - n) % 5 + 1 for n in orders))
