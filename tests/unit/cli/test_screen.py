# SPDX-License-Identifier: GPL-2.0-only
"""What is printed after the screen has closed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ipttrace.cli import outcome, screen


def close_with(figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the screen close at once, with these figures."""

    class Closed:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

        def run(self) -> dict[str, Any]:
            return figures

    monkeypatch.setattr("ipttrace.tui.app.TraceApp", Closed)


def reason() -> int:
    print("ipttrace: the reason", file=sys.stderr)
    return outcome.FAILED


def test_an_agent_that_never_began_gives_its_reason_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a stream without a frame
    close_with({"error": "the stream is empty", "engine": "", "rows": 0}, monkeypatch)
    assert screen.show([], "here", words=reason) == outcome.FAILED
    assert capsys.readouterr().err == "ipttrace: the reason\n"
    # WHEN the agent wrote no reason THEN the stream's own error remains
    assert screen.show([], "here", words=lambda: outcome.DONE) == outcome.FAILED
    assert capsys.readouterr().err.startswith("ipttrace: the stream is empty\nrows=0 ")


def test_the_summary_is_the_last_line_after_what_the_agent_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    close_with({"error": None, "engine": "netlink", "rows": 3}, monkeypatch)
    assert screen.show([], "here", words=reason) == outcome.FAILED
    first, last = capsys.readouterr().err.splitlines()
    assert first == "ipttrace: the reason"
    assert last.startswith("rows=3 ")
