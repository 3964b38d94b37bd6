# SPDX-License-Identifier: GPL-2.0-only
"""A command that prints rules: what it prints, and what may go wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError


def test_a_command_that_ctrl_c_has_reached_is_run_again(tmp_path: Path) -> None:
    # GIVEN a command that the terminal's SIGINT ends the first time
    again = tmp_path / "again"
    script = f"test -e {again} || {{ touch {again}; kill -INT $$; }}; echo rules"
    assert iptables_save.run(["sh", "-c", script]) == b"rules\n"
    # AND one that it ends always
    with pytest.raises(CaptureError, match="sh was interrupted"):
        iptables_save.run(["sh", "-c", "kill -INT $$"])


def test_a_command_that_fails_is_named_with_its_first_line() -> None:
    with pytest.raises(CaptureError, match=r"^sh fails: no such table$"):
        iptables_save.run(["sh", "-c", "echo no such table >&2; echo more >&2; exit 3"])
    with pytest.raises(CaptureError, match=r"^sh fails: status 3$"):
        iptables_save.run(["sh", "-c", "exit 3"])
