# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's tables when they are full, and fragments as programs in the kernel see them.

Truth: the kernel's own files, its log, and nft's counters.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipttrace.capture.tables import values
from ipttrace.capture.tables.watch import TableWatch
from ipttrace.lab.network.ns import call_in
from ipttrace.trace.fragments import Fragments, index_of
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.trace.tables import CONNTRACK, IPV4, KernelTables, TableHistory
from tests.lab.fragments import datagram, piece4, piece6
from tests.lab.wire import transmit
from tests.vm.conftest import SHARED
from tests.vm.kernel_log import dmesg
from tests.vm.live import live
from tests.vm.plain import Plain
from tests.vm.wired import wired

pytestmark = SHARED

MOST = 53  # entries of conntrack's table
MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
SIZE = 1600
DATAGRAM = datagram(SIZE)
SPANS = [(0, 800), (800, 1200), (1200, SIZE)]
EXPR = "src host 10.5.0.5 or src host fd05::5"
# Before conntrack puts fragments together, and after.
RULES = """table inet early {
    chain pre { type filter hook prerouting priority -450; policy accept;
        ip saddr 10.5.0.5 counter
        ip6 saddr fd05::5 counter
    }
}
table inet late {
    chain pre { type filter hook prerouting priority 0; policy accept;
        ct state new ip saddr 10.5.0.5 counter
        ct state new ip6 saddr fd05::5 counter
    }
    chain in { type filter hook input priority 0; policy accept;
        ip saddr 10.5.0.5 counter
        ip6 saddr fd05::5 counter
    }
}
"""


LEGACY = """*mangle
:PREROUTING ACCEPT [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
COMMIT
"""


@pytest.fixture
def plain() -> Iterator[Plain]:
    with wired() as one:
        subprocess.run(["nsenter", f"--net=/run/netns/{one.name}", "nft", "-f", "-"],
                       input=RULES, text=True, check=True)  # fmt: skip
        yield one


@contextlib.contextmanager
def small_table() -> Iterator[None]:
    """Conntrack's table has room for MOST entries of a namespace."""
    before = MAX.read_text()
    MAX.write_text(str(MOST))
    try:
        yield
    finally:
        MAX.write_text(before)


def send(plain: Plain, *packets: bytes) -> None:
    call_in(plain.name, lambda: transmit(packets))


class Watched:
    """What a watch of the namespace reports, as in a stream."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.watch = TableWatch(plain.name)
        self.seen = KernelTables()

    def look(self) -> None:
        for _, value in self.watch.look():
            self.seen.feed(json.loads(json.dumps(value)))

    def conntrack(self) -> TableHistory:
        known = self.seen.namespace(self.plain.inode)
        assert known is not None
        return known.table(CONNTRACK)

    def kernel_entries(self) -> int:
        path = "/proc/sys/net/netfilter/nf_conntrack_count"
        return int(self.plain.run("cat", path).stdout)


def full_lines() -> int:
    return sum("table full" in line for line in dmesg().splitlines())


def test_a_full_conntrack_table_is_shown_with_what_it_drops(plain: Plain) -> None:
    watched = Watched(plain)
    with small_table():
        watched.look()
        assert watched.conntrack().limit == MOST
        assert watched.conntrack().values["drop"] == 0
        # WHEN almost as many flows come as there is room for
        send(plain, *(piece4(9, datagram(100, port), 0, 100) for port in range(1000, 1051)))
        watched.look()
        assert watched.conntrack().used == watched.kernel_entries() == 51
        assert watched.conntrack().level == "warn"
        # AND then many more
        log = full_lines()
        send(plain, *(piece4(9, datagram(100, port), 0, 100) for port in range(2000, 2211)))
        watched.look()
        one = watched.conntrack()
        # THEN the table is full, as the kernel's log has it, and each packet is accounted for
        assert full_lines() > log
        assert one.used == watched.kernel_entries() <= MOST
        assert one.level == "full"
        assert one.recent("drop") > 0
        lost = one.recent("drop") + one.recent("early_drop")
        assert lost == 51 + 211 - watched.kernel_entries()
        if stat := plain.run("cat", "/proc/self/net/stat/nf_conntrack").stdout:
            head, *lines = stat.splitlines()
            column = head.split().index("drop")
            assert sum(int(line.split()[column], 16) for line in lines) == one.values["drop"]


def test_conntrack_s_counters_are_known_without_its_file(plain: Plain) -> None:
    # GIVEN the netlink half of conntrack
    subprocess.run(["modprobe", "nf_conntrack_netlink"], check=True)
    with small_table():
        send(plain, *(piece4(9, datagram(100, port), 0, 100) for port in range(1000, 1100)))

        def both() -> tuple[dict[str, int], dict[str, int]]:
            text = values._bytes("/proc/thread-self/net/stat/nf_conntrack")
            return values._netlink_counters(), values._file_counters(text)

        by_netlink, by_file = call_in(plain.name, both)
    assert by_netlink["drop"] > 0
    for name in by_file.keys() & by_netlink.keys():
        assert by_file[name] == by_netlink[name], name


def of_tables(rows: list[Row]) -> list[Row]:
    """The rows of tables, without those of what happened outside them."""
    return [row for row in rows if row.station is None]


def described(trace: Trace, row: Row) -> Fragments:
    held = index_of(trace.store).of_row(row.index, row.journey)
    assert held is not None
    return held


@pytest.mark.parametrize("piece", [piece4, piece6], ids=["IPv4", "IPv6"])
def test_a_reassembled_packet_names_its_fragments(
    plain: Plain, tmp_path: Path, piece: Callable[..., bytes]
) -> None:
    one = live(plain, tmp_path / "ready", engine="bpf", expr=EXPR)
    send(plain, *(piece(77, DATAGRAM, *span) for span in SPANS))
    one.wait_rows(5)
    rows = of_tables(one.finish())
    # THEN rows are as nft has counted: three fragments, then one packet twice
    rules = plain.run("nft", "list", "ruleset").stdout
    assert rules.count("counter packets 3 ") == 1
    assert rules.count("counter packets 1 ") == 2
    parts = [row for row in rows if row.table == "early"]
    wholes = [row for row in rows if row.table == "late"]
    assert (len(parts), len(wholes)) == (3, 2)
    for row in wholes:
        held = described(one.trace, row)
        assert (held.complete, held.is_fragment) == (True, False)
        assert [(each.start, each.end) for each in held.pieces] == SPANS
        assert [each.seq for each in held.pieces] == [each.index for each in parts]
    for row in parts:
        held = described(one.trace, row)
        assert held.whole is not None
        assert held.whole[0] == wholes[0].index


def test_where_only_the_receiver_puts_fragments_together_legacy_tables_see_both(
    tmp_path: Path,
) -> None:
    # GIVEN a namespace without conntrack: fragments pass PREROUTING, and INPUT sees the packet
    with wired() as bare:
        bare.load(LEGACY, 4)
        one = live(bare, tmp_path / "ready", engine="kernel", expr=EXPR)
        send(bare, *(piece4(77, DATAGRAM, *span) for span in reversed(SPANS)))
        one.wait_rows(5)
        rows = of_tables(one.finish())
    assert [row.hook for row in rows] == ["PREROUTING"] * 3 + ["INPUT"] * 2
    parts, wholes = rows[:3], rows[3:]
    for row in wholes:
        assert row.frag is None
        held = described(one.trace, row)
        assert held.complete
        assert {each.seq for each in held.pieces} == {each.index for each in parts}
    first = wholes[0]
    assert described(one.trace, parts[0]).whole == (first.index, first.time, first.journey)


def test_no_table_sees_an_ipv6_packet_that_is_put_together_after_input(tmp_path: Path) -> None:
    with wired() as bare:
        bare.load(LEGACY, 6)
        one = live(bare, tmp_path / "ready", engine="bpf", expr=EXPR)
        send(bare, *(piece6(77, DATAGRAM, *span) for span in SPANS))
        one.wait_rows(9)
        rows = of_tables(one.finish())
    # Three fragments in mangle twice, and in filter.
    assert len(rows) == 9
    for row in rows:
        held = described(one.trace, row)
        assert held.is_fragment
        assert held.complete
        assert held.whole is None
        assert [(each.start, each.end) for each in held.pieces] == SPANS
    assert faults(one.trace) == {}


def faults(trace: Trace) -> dict[int, int]:
    """The faults of each row that has any."""
    index = index_of(trace.store)
    found: dict[int, int] = {}
    for part in trace.store.parts():
        bits = index.faults(part).tolist()
        found |= {part.first + at: one for at, one in enumerate(bits) if one}
    return found


def test_a_reassembly_that_times_out_is_marked(plain: Plain, tmp_path: Path) -> None:
    plain.run("sysctl", "-qw", "net.ipv4.ipfrag_time=2")
    one = live(plain, tmp_path / "ready", engine="bpf", expr=EXPR)

    def known() -> TableHistory | None:
        found = one.trace.kernel_tables.namespace(plain.inode)
        return None if found is None else found.table(IPV4)

    one.wait(lambda: known() is not None, "the kernel's tables")
    send(plain, *(piece4(number, DATAGRAM, 0, 800) for number in range(3)))
    send(plain, *(piece4(9, DATAGRAM, *span) for span in SPANS))
    one.wait_rows(3 + 3 + 2)
    assert faults(one.trace) == {}
    one.wait(lambda: len(faults(one.trace)) == 3, "timeouts")
    assert set(faults(one.trace).values()) == {4}
    snmp = plain.run("cat", "/proc/self/net/snmp").stdout.splitlines()
    names, numbers = (line.split() for line in snmp if line.startswith("Ip:"))
    truth: dict[str, Any] = dict(zip(names, numbers, strict=True))
    history = known()
    assert history is not None
    assert int(truth["ReasmTimeout"]) == 3 == history.values["ReasmTimeout"]
    assert int(truth["ReasmOKs"]) == 1 == history.values["ReasmOKs"]
    one.finish()
