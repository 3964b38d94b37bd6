# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace drops`: lines of drops, and what they add up to."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ipttrace.cli.drops import Sums, build_parser
from ipttrace.cli.pump import Pump
from ipttrace.trace import query
from ipttrace.view.formats import output
from tests.data.stations import ROUTER, stream


def test_drops_are_lines_without_columns_of_tables_and_are_added_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a stream of a router
    path = tmp_path / "drops.iptr"
    path.write_bytes(stream())
    sums = Sums()
    names = {ROUTER: "router"}
    pump = Pump(
        output("text", names, drops=True),
        query=query.compile("station=dropped"),
        written=sums.add,
        before_summary=sums.show,
    )
    # WHEN its drops are printed
    fd = os.open(path, os.O_RDONLY)
    try:
        with os.fdopen(fd, "rb") as file:
            assert pump.run(file) == 0
    finally:
        out, err = capfd.readouterr()
    # THEN each is a line with reason, place and sentence
    heading, *lines = out.splitlines()
    assert heading.endswith("REASON AT PLACE  WHAT IT MEANS")
    assert "VERDICT" not in heading
    assert len(lines) == 33
    assert sum("IP_RPFILTER at ip_rcv_finish_core+0x1d2  RPF" in one for one in lines) == 23
    # AND the sums are on stderr, before the summary
    assert re.search("^DROPS  REASON +PLACE$", err, re.MULTILINE)
    assert re.search("^ +23  IP_RPFILTER +ip_rcv_finish_core[+]0x1d2$", err, re.MULTILINE)
    assert re.search("^ +1  - +odd_function[+]0x1$", err, re.MULTILINE)
    assert err.splitlines()[-1].startswith("rows=33 ")


def test_drops_need_no_engine() -> None:
    parsed = build_parser().parse_args(["--duration", "3"])
    assert parsed.engine == "none"
    assert not parsed.no_drops
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--engine", "bpf"])
