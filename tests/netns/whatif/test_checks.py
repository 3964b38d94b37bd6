# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace test`: the example in docs, and what a firewall that is wrong is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.netns.whatif.copies import need_namespaces
from tests.paths import PROJECT

OFFICE = PROJECT / "docs" / "examples" / "office"


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    need_namespaces()
    done = subprocess.run(
        [sys.executable, "-m", "ipttrace", "test", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_office_of_the_documents_passes(folder: Path) -> None:
    # the network and the rules are found beside the tests
    status, output, errors = run(str(OFFICE / "tests.yaml"), cwd=folder)
    assert (status, errors) == (0, ""), output
    assert output.splitlines()[-1] == "11 tests: 11 passed, 0 failed"


def test_each_expectation_that_is_not_met_is_told(folder: Path) -> None:
    # GIVEN the office without the rule for the web, and tests that expect too much
    rules = (OFFICE / "rules.v4").read_text().replace("-A FORWARD -i lan0 -o wan0 -j ACCEPT\n", "")
    (folder / "rules.txt").write_text(rules)
    (folder / "tests.yaml").write_text(f"""\
network: {OFFICE}/network.json
rules: rules.txt
with: [iptables -A FORWARD -i lan0 -p udp -j ACCEPT]
tests:
- packet: tcp 10.1.0.7:40000 > 203.0.113.9:443 in lan0 syn
  name: "web \\e[31m<&>"
  verdict: accepted
  by: filter FORWARD 1
  leaves: wan0
  from: 198.51.100.2
- packet: udp 10.1.0.7:40000 > 203.0.113.9:53 in lan0
  delivered: yes
  rule: -p tcp
  to: 203.0.113.9:54
- packet: udp 10.1.0.7:40000 > 203.0.113.9:53 in nowhere0
  verdict: dropped
- packet: udp 10.1.0.7:40000 > 203.0.113.9:53 in lan0
  verdict: accepted
  by: filter FORWARD
  rule: -i lan0 -p udp
""")
    # WHEN they run
    status, output, errors = run("tests.yaml", "--junit", "out.xml", cwd=folder)
    # THEN each expectation that is not met is told
    assert (status, errors) == (3, "")
    told = [line.strip() for line in output.splitlines()]
    assert told == [
        "✗ web \\x1b[31m<&>",
        "verdict: dropped instead of accepted",
        "by: filter FORWARD policy instead of filter FORWARD 1",
        "leaves: nothing instead of wan0",
        "from: nothing leaves instead of 198.51.100.2",
        "dropped: by filter FORWARD's policy",
        "✗ udp 10.1.0.7:40000 > 203.0.113.9:53 in lan0",
        "rule: -i lan0 -p udp -j ACCEPT or -o wan0 -j MASQUERADE instead of …-p tcp…",
        "delivered: no",
        "to: 203.0.113.9:53 instead of 203.0.113.9:54",
        "accepted: leaves wan0, next hop's link-layer address unknown:"
        " udp 198.51.100.2:40000 > 203.0.113.9:53 ttl 63",
        "✗ udp 10.1.0.7:40000 > 203.0.113.9:53 in nowhere0",
        "the packet cannot be sent: there is no device nowhere0: lan0, guest0, wan0",
        "✓ udp 10.1.0.7:40000 > 203.0.113.9:53 in lan0",
        "4 tests: 1 passed, 3 failed",
    ]
    # AND the XML has the same
    (suite,) = ElementTree.parse(folder / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "1")
    assert [len(case) for case in suite] == [1, 1, 1, 0]
