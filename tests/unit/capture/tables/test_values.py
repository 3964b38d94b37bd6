# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel does not report, or reports in a form of its own, is absent and never 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.capture.tables import values

SNMP = """\
Ip: Forwarding DefaultTTL ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs
Ip: 1 64 3 20 8 4 0
Icmp: InMsgs ReasmOKs
Icmp: 7 7
"""
SNMP6 = "Ip6InReceives                   \t9\nIp6ReasmTimeout                 \t2\n"
STAT = """\
entries  clashres found new invalid chainlength insert insert_failed drop early_drop icmp_error
0000000b  00000001 00000002 00000000 0000000a 00000000 00000000 00000001 00000003 00000000 00000000
0000000b  00000000 00000001 00000000 00000010 00000000 00000000 00000000 00000001 00000000 00000004
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc."""
    monkeypatch.setattr(values, "_NET", f"{tmp_path}/net")
    monkeypatch.setattr(values, "_SYSCTL", f"{tmp_path}/sys")
    monkeypatch.setattr(values, "_CONNTRACK", f"{tmp_path}/sys/netfilter/nf_conntrack_")
    monkeypatch.setattr(values, "_MODULES", f"{tmp_path}/modules")
    return tmp_path


def write(proc: Path, **files: str) -> None:
    """Writes files; two underscores in a name stand for a slash."""
    for name, text in files.items():
        path = proc / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_kernel_that_reports_nothing_has_no_tables(proc: Path) -> None:
    assert values.reassembly4() == values.reassembly6() == values.conntrack() == {}


def test_counters_are_found_by_their_names_not_by_their_order(proc: Path) -> None:
    write(proc, net__snmp=SNMP, net__snmp6=SNMP6, net__sockstat="FRAG: inuse 5 memory 4096\n")
    four, six = values.reassembly4(), values.reassembly6()
    assert four == {
        "queues": 5,
        "memory": 4096,
        "ReasmReqds": 20,
        "ReasmOKs": 8,
        "ReasmFails": 4,
        "ReasmTimeout": 3,
    }
    assert six == {"ReasmTimeout": 2}


def test_conntrack_s_counters_are_summed_over_all_cpus(proc: Path) -> None:
    write(proc, sys__netfilter__nf_conntrack_count="11\n", sys__netfilter__nf_conntrack_max="99\n")
    write(proc, net__stat__nf_conntrack=STAT)
    found = values.conntrack()
    assert (found["entries"], found["max"]) == (11, 99)
    assert (found["drop"], found["invalid"], found["error"]) == (4, 26, 4)
    assert (found["clash_resolve"], found["insert_failed"], found["found"]) == (1, 1, 3)
    assert "search_restart" not in found


@pytest.mark.parametrize(
    "text", ["", "\n", "Ip: ReasmOKs\n", "Ip: ReasmOKs\nIp: -1\n", "Ip: ReasmOKs\nIp:\n", "\xff"]
)
def test_a_file_of_another_form_is_as_if_it_were_absent(proc: Path, text: str) -> None:
    write(proc, net__snmp=text, net__sockstat=text, net__netstat=text, net__snmp6=text)
    assert values.reassembly4() == values.reassembly6() == {}


@pytest.mark.parametrize("text", ["", "\n", "drop\nx\n", "entries\n", "drop\n\n"])
def test_a_file_of_counters_of_another_form_is_no_zero(text: str) -> None:
    assert values._file_counters(text.encode()) == {}


def test_asking_for_counters_loads_no_module(proc: Path) -> None:
    # GIVEN conntrack as a module, but not its netlink half, and no file of its counters
    write(proc, sys__netfilter__nf_conntrack_count="11\n", modules="nf_conntrack 200704 1 - Live\n")
    # THEN the counters are unknown
    assert values.conntrack() == {"entries": 11}
