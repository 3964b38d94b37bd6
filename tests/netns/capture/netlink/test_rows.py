# SPDX-License-Identifier: GPL-2.0-only
"""Rows traced over netlink are what happened: every packet, every rule hit, nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ipttrace.lab.network import ROLES, Network, NetworkError, read_counters
from ipttrace.lab.traffic.server import Server
from tests.lab import stages
from tests.lab.scenarios import scenarios
from tests.netns.loopback import HANG
from tests.netns.netlink_lab import (
    Row,
    hits,
    in_short,
    path,
    tally,
    tracing,
    tracing_each,
    unknown_is_empty,
)
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace
from tests.program import Command, ipttrace


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


def test_every_scenario_makes_exactly_the_rows_that_its_rules_imply(
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
    wanted: stages.Tally = Counter()
    for (role, hook, table, steps, verdict), n in stages.tally(
        traversal for one in expected for traversal in one.expected
    ).items():
        wanted[role, hook, table, steps, verdict] += n
    assert (found - wanted, wanted - found) == (Counter(), Counter())
    assert all(unknown_is_empty(some) for some in rows.values())


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def name(namespace: RulesetNamespace) -> str:
    return Path(namespace.path).name


# A comment that looks like the end of a rule.
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
# For a table of iptables-nft and one of legacy: rules at INPUT and OUTPUT.
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
        "INPUT n in:1 four:2 four:3 in:3 ACCEPT": 23,
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
    namespace: RulesetNamespace, tmp_path: Path, family: int
) -> None:
    six = "6" if family == 6 else ""
    icmp = "ipv6-icmp" if six else "icmp"
    restore = {"nft": "mangle", "legacy": "filter"}
    for kind, table in restore.items():
        text = IPTABLES.replace("{table}", table).replace("ICMP", icmp)
        namespace.run(f"ip{six}tables-{kind}-restore", input=text)
    namespace.nft(NATIVE)
    with tracing(tmp_path, name(namespace)) as tracer:
        namespace.run("ping", "-c", "23", "-i", "0.002", "-q", "::1" if six else "127.0.0.1")
        tracer.wait(sum(EXPECTED[family].values()))
        rows = tracer.finish()
    rows = [row for row in rows if row["icmp"] in ("8/0", "0/0", "128/0", "129/0")]
    # THEN each request and reply hit exactly these rules, and no field is invented
    assert dict(tally(rows)) == EXPECTED[family]
    assert unknown_is_empty(rows)
    assert Counter(row["icmp"] for row in rows) == (
        {"128/0": 115, "129/0": 115} if six else {"8/0": 138, "0/0": 138}
    )
    # AND in the order of hooks and their priorities
    tables = [row["table"] for row in rows]
    one_packet = ["mangle", *([] if six else ["o"]), "filter", "mangle", "filter", "n"]
    assert tables == one_packet * 46
    # AND each rule has counted as many packets as rows hit it
    found = hits(rows)
    for kind, table in restore.items():
        counted = read_counters(namespace.run(f"ip{six}tables-{kind}-save", "-c"))
        seen = {rule[1:]: n for rule, n in found.items() if rule[0] == table}
        assert {p[1:]: n for p, (n, _) in counted.items() if n and p[0] == table and p[2]} == {
            rule: n for rule, n in seen.items() if rule[1]
        }
    # AND each rule's text is as the tool that made it prints it
    texts = {(row["table"], row["chain"], row["rulenum"]): row["rule"] for row in rows}
    own = f'-p {icmp} -m comment --comment "a \\"test\\" }} # handle 3" -j ACCEPT'
    assert texts["mangle", "OUTPUT", 1] == texts["filter", "OUTPUT", 1] == own
    for kind, table in restore.items():
        listed = namespace.run(f"ip{six}tables-{kind}", "-t", table, "-S", "OUTPUT").splitlines()
        assert listed[1] == f"-A OUTPUT {own}"
    if six:
        assert texts["n", "in", 4] == "icmpv6 type { echo-request, echo-reply } counter accept"
    else:
        assert texts["n", "last", 1] == "counter accept"
        assert texts["n", "in", 3] == (
            "icmp type vmap { echo-reply : accept, echo-request : goto last }"
        )


@pytest.mark.parametrize(("first", "second"), [("legacy", "nft"), ("nft", "legacy")])
def test_a_packet_that_one_backend_accepts_and_the_other_drops_has_both_rows_in_order(
    namespace: RulesetNamespace, tmp_path: Path, first: str, second: str
) -> None:
    # GIVEN a table of each backend: the one at priority -150 accepts, the one at 0 drops
    for kind, table, target in ((first, "mangle", "ACCEPT"), (second, "filter", "DROP")):
        rule = ["-A", "INPUT", "-p", "udp", "--dport", "9", "-j", target]
        namespace.run(f"iptables-{kind}", "-t", table, *rule)
    with tracing(tmp_path, name(namespace), "udp port 9") as tracer:
        send(namespace, 9, 23)
        while len(rows := [row for row in tracer.rows if row["hook"] == "INPUT"]) < 46:
            tracer.wait(len(tracer.rows) + 1)
        tracer.finish()
    assert [in_short(row) for row in rows] == [
        "INPUT mangle INPUT:1 ACCEPT",
        "INPUT filter INPUT:1 DROP",
    ] * 23
    assert [row["rule"] for row in rows[:2]] == [
        f"-p udp -m udp --dport 9 -j {target}" for target in ("ACCEPT", "DROP")
    ]


LONG_NAMES = ("endpoint-ZWRBQNPI-kube-system/kube-dns/udp/dns__10.244.0.4/53", "x" * 128, "b" * 120)


def test_long_names_of_nftables_are_whole_in_rows_queries_and_recordings(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    table, chain, base = LONG_NAMES
    other = f"{chain[:-1]}y"  # the same in the bytes that a record has
    namespace.nft(f"""
    table inet {table} {{
      chain {other} {{ counter; }}
      chain {chain} {{ jump {other}; udp dport 9 counter drop; }}
      chain {base} {{ type filter hook input priority 3; jump {chain}; }}
    }}""")
    recording = tmp_path / "long.iptr"
    argv = ["record", str(recording), "--engine", "netlink", "--netns", name(namespace)]
    argv += ["--ready-file", str(tmp_path / "ready"), "udp port 9"]
    with Command(tmp_path, argv) as command:
        command.wait_ready()
        send(namespace, 9, 3)
        command.interrupt()
        command.finish()
    for words in ([], ["--query", f'chain="{chain}" and table="{table}"']):
        done = ipttrace("replay", str(recording), "--format", "jsonl", *words)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        rows = [row for row in rows if row["hook"] == "INPUT"]
        steps = f"{base}:1 {chain}:1 {other}:1 {other}:2/return {chain}:2"
        assert tally(rows) == {f"INPUT {table} {steps} DROP": 3}
        assert {row["rule"] for row in rows} == {"udp dport 9 counter drop"}
        assert {row["chain"] for row in rows} == {chain}
    text = ipttrace("replay", str(recording)).stdout.splitlines()
    assert sum(f" {table} " in line and f" {chain} " in line for line in text) == 3


@pytest.mark.parametrize("drops", ["legacy", "nft"])
def test_nothing_follows_a_drop_if_both_backends_have_a_chain_of_one_priority(
    namespace: RulesetNamespace, tmp_path: Path, drops: str
) -> None:
    # GIVEN a table of each backend at priority 0: the one made last is met first, and accepts
    first = "nft" if drops == "legacy" else "legacy"
    for kind, target in ((drops, "DROP"), (first, "ACCEPT")):
        rule = ["-A", "INPUT", "-p", "udp", "--dport", "9", "-j", target]
        namespace.run(f"iptables-{kind}", *rule)
    with tracing(tmp_path, name(namespace), "udp port 9") as tracer:
        send(namespace, 9, 23)
        tracer.wait_until(lambda rows: sum(row["hook"] == "INPUT" for row in rows) >= 46)
        tracer.finish()
    found = [in_short(row) for row in tracer.rows if row["hook"] == "INPUT"]
    assert found == ["INPUT filter INPUT:1 ACCEPT", "INPUT filter INPUT:1 DROP"] * 23


def send(namespace: RulesetNamespace, port: int, count: int, payload: bytes = b"hello") -> None:
    with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(payload, ("127.0.0.1", port))


def test_only_packets_that_expr_matches_are_shown_though_others_trace_all(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN other programs that trace every packet, in nftables and legacy tables
    namespace.nft("""
    table inet other {
      chain in { type filter hook prerouting priority -400; meta nftrace set 1; }
      chain out { type filter hook output priority -400; meta nftrace set 1; }
    }""")
    for chain in ("PREROUTING", "OUTPUT"):
        namespace.run("iptables-legacy", "-t", "raw", "-A", chain, "-j", "TRACE")
    namespace.nft("table ip t { chain c { type filter hook input priority 0; counter; }; }")
    expected = {
        "icmp": None,
        "udp port 53": {(53, b"hello"), (53, b"has")},
        # nftables cannot express this: it is checked on the captured headers.
        "udp[8] = 0x68 and not udp[9] = 0x61": {(53, b"hello"), (9, b"hello")},
    }
    for number, (expression, wanted) in enumerate(expected.items()):
        with tracing(tmp_path / str(number), name(namespace), expression) as tracer:
            for port in (53, 9):
                for payload in (b"hello", b"has"):
                    send(namespace, port, 23, payload)
            namespace.run("ping", "-c", "23", "-i", "0.002", "-q", "127.0.0.1")
            rows = tracer.finish()
        # THEN exactly the packets that match are there
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


def all_arrived(one: RulesetNamespace, rows: list[Row]) -> bool:
    """Whether there are rows of all 23 datagrams with a hundred bytes in a namespace."""
    wanted = (one.inode, 128, "UDP")
    return sum((row["netns"], row["len"], row["proto"]) == wanted for row in rows) == 23


@pytest.mark.alone
def test_all_namespaces_are_traced_also_one_that_is_made_meanwhile(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    rules = "table ip t { chain c { type filter hook input priority 0; udp dport 9 accept; }; }"
    with (
        ruleset_namespace() as second,
        tracing(tmp_path, "all") as tracer,
        ruleset_namespace() as third,
    ):
        namespaces = [namespace, second, third]
        for one in namespaces:
            one.nft(rules)
        # WHEN datagrams are sent in all three
        for one in namespaces:
            while not any(row["netns"] == one.inode for row in tracer.rows):
                send(one, 9, 1)
                with contextlib.suppress(TimeoutError):
                    tracer.wait(len(tracer.rows) + 1, 0.2)
        for one in namespaces:
            send(one, 9, 23, bytes(100))
        for one in namespaces:
            tracer.wait_until(partial(all_arrived, one))
        for one in namespaces:
            # (without a receiver, they are answered by ICMP errors)
            rows = [row for row in tracer.rows if row["netns"] == one.inode]
            rows = [row for row in rows if row["proto"] == "UDP"]
            assert set(tally(rows)) == {"INPUT t c:1 ACCEPT"}
        tracer.command.interrupt()


def test_texts_are_right_or_empty_while_rules_are_replaced(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN rules of which only one accepts port 1000 + n, and names it
    def rules(first: int) -> None:
        order = [(first + n) % 5 for n in range(5)]
        namespace.nft("table ip t\ndelete table ip t\ntable ip t { chain c {\n"
                  "type filter hook input priority 0;\n"
                  + "".join(f"udp dport {1000 + n} accept\n" for n in order) + "}; }")  # fmt: skip
        for kind in ("nft", "legacy"):
            lines = [f"-A INPUT -p udp -m udp --dport {1000 + n} -j ACCEPT\n" for n in order]
            table = "mangle" if kind == "nft" else "filter"
            text = f"*{table}\n:INPUT ACCEPT\n{''.join(lines)}COMMIT\n"
            namespace.run(f"iptables-{kind}-restore", input=text)

    rules(0)
    texts = {"t": "udp dport {} accept"}
    texts["mangle"] = texts["filter"] = "-p udp -m udp --dport {} -j ACCEPT"
    orders = range(6)
    with tracing(tmp_path, name(namespace), "udp") as tracer:
        for first in orders:
            if first:
                rules(first)
            # WHEN they are replaced under traffic, and when they stay
            for n in range(5):
                send(namespace, 1000 + n, 23)
        last = 1000 + 3
        # (until the last rules' texts are known)
        wanted = {(table, text.format(last)) for table, text in texts.items()}
        deadline = time.monotonic() + HANG
        while not wanted <= {(row["table"], row["rule"]) for row in tracer.rows[-50:]}:
            assert time.monotonic() < deadline
            send(namespace, last, 1)
            tracer.wait(len(tracer.rows) + 1)
        rows = [row for row in tracer.finish() if row["hook"] == "INPUT"]
    # THEN every text is the rule's own, or empty, and every number is one that it had
    with_text = {row["table"] for row in rows if row["rule"]}
    assert with_text == set(texts)
    for row in rows:
        assert row["rule"] in (None, texts[row["table"]].format(row["dport"]))
        assert row["match"] == "rule"
        assert row["rulenum"] in (None, *((row["dport"] - 1000 - n) % 5 + 1 for n in orders))
