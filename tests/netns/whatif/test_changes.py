# SPDX-License-Identifier: GPL-2.0-only
"""A packet's way with and without a change of the rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipttrace.whatif.copy.changes import parse
from ipttrace.whatif.errors import WhatIfError
from tests.netns.whatif.copies import ROUTER, need_namespaces, write
from tests.netns.whatif.test_answers import RULES
from tests.paths import PROJECT

P = "tcp 10.1.0.2:40000 > 10.2.0.2:8443 in lan0 syn"


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    need_namespaces()
    rules = folder / "rules.txt"
    rules.write_text(RULES)
    network = write(folder, ROUTER)
    sources = ["--network", network, "--rules", str(rules)]
    done = subprocess.run(
        [sys.executable, "-m", "ipttrace", "whatif", *sources, *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_change_is_shown_beside_the_way_without_it(folder: Path) -> None:
    change = "iptables -I FORWARD 2 -i lan0 -p tcp --dport 8443 -j ACCEPT"
    route = "ip route add 10.2.0.2/32 via 10.1.0.7 dev lan0"
    arguments = ["--with", change, "--with", route, P]
    status, output, errors = run(folder, *arguments, COLUMNS="200")
    assert (status, errors) == (0, "")
    (marked,) = [line for line in output.splitlines() if "≠" in line]
    without, _, with_it = marked.partition("≠")
    assert without.strip() == "filter FORWARD 2: -i lan0 -j WEB"
    assert with_it.strip() == "filter FORWARD 2: -i lan0 -p tcp -m tcp --dport 8443 -j ACCEPT"
    status, output, _ = run(folder, *arguments, "--format", "jsonl")
    change_: dict[str, Any] = json.loads(output)["change"]
    assert (change_["without"]["verdict"], change_["with"]["verdict"]) == ("DROP", "ACCEPT")
    assert [one["device"] for one in change_["with"]["left"]] == ["lan0"]


def test_edited_rules_are_taken_as_the_editor_leaves_them(folder: Path) -> None:
    editor = "sed -i s/:FORWARD.DROP/:FORWARD\\ ACCEPT/"
    status, output, errors = run(folder, "--edit", P, EDITOR=editor, VISUAL="")
    assert (status, errors) == (0, "")
    (marked,) = [line for line in output.splitlines() if "≠" in line]
    assert marked.split("≠")[1].strip() == "filter FORWARD: policy ACCEPT"
    # AND an editor that fails changes nothing
    status, _, errors = run(folder, "--edit", P, EDITOR="false", VISUAL="")
    assert (status, errors) == (
        *(1,),
        "ipttrace: false ended with status 1: nothing is changed\n",
    )


def test_a_change_that_iptables_refuses_is_one_line(folder: Path) -> None:
    status, _, errors = run(folder, "--with", "iptables -I NONE 1 -j ACCEPT", P)
    assert status == 1
    assert errors.count("\n") == 1
    assert errors.startswith("ipttrace: iptables -I NONE 1 -j ACCEPT: ")


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf /",
        "sh -c id",
        "",
        "iptables -I FORWARD 'x",
        "iptables -I FORWARD --modprobe=/bin/sh",
        "ip6tables -A FORWARD -M /bin/sh",
        "nft -f /etc/passwd",
        "nft -if /etc/passwd",
        "nft include /etc/passwd",
        "ip -b /etc/passwd",
        "ip netns exec outside sh",
        "ip netn exec outside sh",
        "ip vrf exec x sh",
        "ipset -f /etc/passwd restore",
        "ipset restore",
        "/sbin/iptables -F",
    ],
)
def test_commands_that_read_files_or_lead_elsewhere_are_refused(command: str) -> None:
    with pytest.raises(WhatIfError) as caught:
        parse(command)
    assert str(caught.value).isprintable()
