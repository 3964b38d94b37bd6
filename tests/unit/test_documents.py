# SPDX-License-Identifier: GPL-2.0-only
"""The man page and the completion say what the program has, all of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from types import ModuleType

import pytest

from ipttrace.trace.row import FIELDS
from tests.paths import PROJECT

PAGE = PROJECT / "man" / "ipttrace.8"
COMMANDS = ("print", "record", "replay", "export", "agent", "lab", "demo", "doctor")


def options(command: str) -> set[str]:
    """The long options of its usage line."""
    argv = [sys.executable, "-m", "ipttrace", *([command] if command else []), "--help"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    return {"--help", *re.findall(r"--[a-z-]+", text.split("\n\n")[0])}


def completed(*words: str) -> list[str]:
    """What bash offers behind these words."""
    script = (
        "source completions/ipttrace.bash;"
        f' COMP_WORDS=(ipttrace "$@"); COMP_CWORD={len(words)}; _ipttrace;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    return done.stdout.split()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_option_stands_in_the_man_page_and_is_completed(command: str) -> None:
    page = PAGE.read_text()
    told = options(command)
    for option in told:
        assert f"Fl {option[1:]}" in page, option
    words = [command, "--"] if command else ["--"]
    assert set(completed(*words)) == told


@pytest.mark.parametrize("name", ["ipttrace.bash", "ipttrace.fish", "_ipttrace"])
def test_what_is_completed_is_what_the_program_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN the options by now, WHEN they are made into completions
    monkeypatch.syspath_prepend(str(PROJECT / "tools"))
    import completions

    # THEN that is what we have; else run tools/completions.py
    assert (PROJECT / "completions" / name).read_text() == made(completions)[name]


@cache
def made(completions: ModuleType) -> dict[str, str]:
    files: dict[str, str] = completions.made()
    return files


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "ipttrace.bash"), ("fish", "ipttrace.fish"), ("zsh", "_ipttrace")]
)
def test_each_shell_can_read_its_completions(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, "-n", str(PROJECT / "completions" / name)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_option_is_offered_in_fish(command: str) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    line = f"ipttrace {command} --" if command else "ipttrace --"
    done = subprocess.run(
        [
            "fish",
            "--no-config",
            "-c",
            'source completions/ipttrace.fish; complete -C "$argv"',
            line,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    offered = {text.split("\t")[0] for text in done.stdout.splitlines()}
    assert offered == options(command)


def test_commands_and_their_choices_are_completed() -> None:
    assert set(completed("")) == set(COMMANDS)
    assert completed("export", "x.iptr", "--format", "p") == ["pcapng"]
    assert completed("print", "--engine", "k") == ["kernel"]


def test_every_field_and_command_stands_in_the_man_page() -> None:
    page = PAGE.read_text()
    fields = page[page.index(".Sh FIELDS") : page.index(".Sh EXIT STATUS")]
    for field in FIELDS:
        assert re.search(rf"(^\.It |, ){field}\b", fields, re.MULTILINE) or re.search(
            rf"[ ,]{field}( |$|,)", fields, re.MULTILINE
        ), field
    for command in COMMANDS:
        assert re.search(rf"\.(It )?Cm .*\b{command}\b", page), command


def test_every_key_of_the_screen_stands_in_the_man_page() -> None:
    from ipttrace.tui.app import TraceApp
    from ipttrace.tui.app.help import key_names
    from ipttrace.tui.feed.source import FileSource

    page = PAGE.read_text()
    keys = page[page.index(".Sh KEYS") : page.index(".Sh QUERY LANGUAGE")]
    there = set(re.sub(r"\\(&|\(aq)", lambda m: "'" if m[1] == "(aq" else "", keys).split())
    spelt = {"⏎": "Enter", "⌫": "Backspace", "↑": "Up", "↓": "Down", "←": "Left", "→": "Right"}
    app = TraceApp(FileSource(PROJECT / "tests" / "data" / "lab.iptr"), title="lab")
    for binding in app.all_bindings():
        names = [spelt.get(name, name) for name in key_names(binding.key).split()]
        assert any(name in there or name.capitalize() in there for name in names), binding.key


def test_the_man_page_has_no_mistake_that_groff_warns_of() -> None:
    done = subprocess.run(
        ["groff", "-man", "-mandoc", "-ww", "-z", "-Tutf8", str(PAGE)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
