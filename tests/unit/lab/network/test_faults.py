# SPDX-License-Identifier: GPL-2.0-only
"""Faults to practise on: by name, or any."""

from __future__ import annotations

import pytest

from ipttrace.cli import lab, main
from ipttrace.lab.network.faults import ANY, FAULTS, plant


def test_help_lists_all_faults() -> None:
    assert (*FAULTS, ANY) == lab.FAULTS


@pytest.mark.parametrize("name", [*FAULTS, ANY])
def test_a_fault_is_planted_with_its_commands(name: str) -> None:
    done: list[str] = []
    plant(name, lambda argv: done.append(" ".join(argv)))
    assert tuple(done) in (FAULTS.values() if name == ANY else [FAULTS[name]])


def test_it_is_not_for_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["lab", "--fault", "loss", "--", "true"])
    assert status.value.code == 2
    assert "--fault is for the lab's own network" in capsys.readouterr().err
