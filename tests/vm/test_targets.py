# SPDX-License-Identifier: GPL-2.0-only
"""Legacy rules of all kinds have the right rows with each engine, and the same ones.

Truth comes from rows derived by hand, from iptables-save and from the rules' counters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipttrace.capture import combined, combined_bpf
from ipttrace.capture.rules import netlink_watch
from ipttrace.lab.network import Counters
from ipttrace.lab.network.ns import call_in
from ipttrace.trace.row import Row
from tests.lab import targets
from tests.lab.cases import Ruleset
from tests.lab.conntrack import flush_namespace
from tests.lab.wire import transmit
from tests.vm.conftest import TOGETHER, refuse_bpf
from tests.vm.plain import COMMANDS, Plain
from tests.vm.test_truth import counted_by_rows, grown
from tests.vm.texts import in_short, live
from tests.vm.wired import wired

pytestmark = TOGETHER

# Each run forks: it should not import them each time.
assert combined
assert combined_bpf
assert netlink_watch

FAMILIES = (4, 6)
# Engine and filter of each run, and whether BPF is refused; all packets match the filter.
FILTER = "host 10.5.0.5 or host fd05::5 or udp port 9 or icmp"
RUNS = {
    "kernel": ("kernel", "", False),
    "kernel with a filter": ("kernel", FILTER, False),
    "kernel+bpf": ("auto", "", False),
    "kernel+netlink": ("auto", "", True),
    "netlink": ("netlink", "", False),
}
# Equal whichever engine reports the row.
EQUAL = ("rule", "len", "mark", "proto", "src", "dst", "sport", "dport", "flags", "frag", "in_",
         "out", "mac_src")  # fmt: skip


@dataclass
class Run:
    """What an engine reported of one run of all packets."""

    engine: str
    packets: dict[tuple[int, str], list[list[Row]]]  # family, case → rows of its journeys
    rows: list[Row]
    counted: dict[int, Counters]  # by family, what the rules' counters have grown


@dataclass
class World:
    """A namespace's rulesets, their texts as iptables-save prints them, and all runs."""

    rulesets: dict[int, Ruleset]
    texts: dict[int, dict[tuple[str, str, int], str]]
    runs: dict[str, Run]

    def __iter__(self) -> Iterator[tuple[str, int, str]]:
        """Each run, family and case."""
        for run in self.runs:
            for family, ruleset in self.rulesets.items():
                for case in ruleset.cases:
                    yield run, family, case


def texts(plain: Plain, family: int) -> dict[tuple[str, str, int], str]:
    """(table, chain, number) → the rule as iptables-save prints it."""
    found: dict[tuple[str, str, int], str] = {}
    numbers: dict[tuple[str, str], int] = {}
    table = ""
    for line in plain.run(f"{COMMANDS[family]}-save").stdout.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A"):
            _, chain, *words = line.split(" ", 2)
            numbers[table, chain] = number = numbers.get((table, chain), 0) + 1
            found[table, chain, number] = " ".join(words)
    return found


def run(
    plain: Plain, rulesets: dict[int, Ruleset], ready: Path, engine: str, expr: str, refused: bool
) -> Run:
    """Sends the packets of all cases while the engine traces."""
    packets = [one.packet(name) for one in rulesets.values() for name in one.cases]
    expected = sum(len(one.rows(name)) for one in rulesets.values() for name in one.cases)
    flush_namespace(plain.name)
    before = {family: plain.counters(family) for family in FAMILIES}
    with contextlib.ExitStack() as stack:
        stack.enter_context(refuse_bpf() if refused else contextlib.nullcontext())
        one = stack.enter_context(live(ready, expr=expr, netns=plain.name, engine=engine))
        call_in(plain.name, lambda: transmit(packets))
        one.wait_rows(expected)
        rows = one.finish()
    after = {family: plain.counters(family) for family in FAMILIES}
    journeys: dict[int, list[Row]] = {}
    for row in rows:
        journeys.setdefault(row.journey, []).append(row)
    to = {(f, one.address(name)): (f, name) for f, one in rulesets.items() for name in one.cases}
    found: dict[tuple[int, str], list[list[Row]]] = {case: [] for case in to.values()}
    for journey in journeys.values():
        case = to.get((journey[0].family, journey[0].dst))
        if case is not None:
            found[case].append(journey)
    counted = {family: grown(before[family], after[family]) for family in FAMILIES}
    return Run(str(one.trace.engine), found, rows, counted)


@pytest.fixture(scope="module", params=["conntrack", "bare"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """All runs: in a namespace with conntrack, and in one whose fragments stay apart."""
    rulesets = {
        family: Ruleset(family, targets.cases(family))
        if request.param == "conntrack"
        else Ruleset(family, targets.bare_cases(family), ("raw", "mangle", "filter"))
        for family in FAMILIES
    }
    runs = {
        name: words for name, words in RUNS.items() if request.param == "conntrack" or not words[1]
    }
    folder = tmp_path_factory.mktemp("ready")
    with wired() as plain:
        for family, one in rulesets.items():
            plain.load(one.text(), family)
        if request.param == "conntrack":
            plain.run("sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=0")
        # With rules of nftables `auto` uses both engines; no packet of a case meets them.
        plain.run("nft", "add table ip other { chain out {"
                  " type filter hook output priority 5; udp dport 1 accept; }; }")  # fmt: skip
        yield World(
            rulesets,
            {family: texts(plain, family) for family in FAMILIES},
            {name: run(plain, rulesets, folder / name, *words) for name, words in runs.items()},
        )


def test_each_packet_has_exactly_the_rows_that_its_rules_imply(world: World) -> None:
    wrong = []
    for run, family, case in world:
        ruleset = world.rulesets[family]
        expected = ruleset.rows(case)
        if ruleset.cases[case].may_drop and run == "netlink":
            expected[-1] = expected[-1].replace(" DROP", " None")
        found = [[*map(in_short, rows)] for rows in world.runs[run].packets[family, case]]
        if found != [expected]:
            wrong.append((run, family, case, found, expected))
    assert wrong == []
    engines = {run: one.engine for run, one in world.runs.items()}
    assert engines == {run: run.split()[0] for run in engines}


def test_a_row_shows_the_packet_as_it_came_to_the_table(world: World) -> None:
    wrong = []
    for run, family, case in world:
        (rows,) = world.runs[run].packets[family, case]
        of, at = world.rulesets[family].cases[case], world.rulesets[family].place(case)
        for some, fields in ((rows[at : at + 1], of.came), (rows[at + 1 :], of.left)):
            for field, value in fields.items():
                seen = [getattr(row, field) for row in some]
                if seen != [value] * len(some):
                    wrong.append((run, family, case, field, value, seen))
    assert wrong == []


def test_each_row_has_the_text_of_its_rule_and_each_counter_its_rows(world: World) -> None:
    for run, one in world.runs.items():
        for family, texts in world.texts.items():
            rows = [row for row in one.rows if row.family == family and not row.tables]
            shown = {(row.table, row.chain, row.rulenum, row.match): row.rule for row in rows}
            saved = {
                rule: texts[rule[0], str(rule[1]), int(rule[2] or 0)] if rule[3] == "rule" else None
                for rule in shown
            }
            assert shown == saved, run
            counted = one.counted[family]
            (by_rows,) = counted_by_rows(rows, family).values()
            found = {rule: by_rows.get(rule, (0, 0))[0] for rule in counted}
            assert found == {rule: packets for rule, (packets, _) in counted.items()}, run


def test_all_engines_report_the_same_of_one_ruleset(world: World) -> None:
    def told(of: Run) -> dict[tuple[int, str, str], list[object]]:
        return {
            (*case, in_short(row).rpartition(" ")[0]): [getattr(row, field) for field in EQUAL]
            for case, journeys in of.packets.items()
            for rows in journeys
            for row in rows
        }

    kernel = told(world.runs["kernel"])
    for run, one in world.runs.items():
        other = told(one)
        wrong = {row: (kernel.get(row), other.get(row)) for row in kernel | other
                 if kernel.get(row) != other.get(row)}  # fmt: skip
        assert wrong == {}, run
