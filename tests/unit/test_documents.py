# SPDX-License-Identifier: GPL-2.0-only
"""The man page and the completions cover every command, option, field and key."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from functools import cache
from types import ModuleType

import pytest

from ipttrace.cli import commands
from ipttrace.trace.row import FIELDS
from tests.paths import DATA, PROJECT

PAGE = PROJECT / "man" / "ipttrace.8"
COMMANDS = tuple(command.name for command in commands.COMMANDS)
DOCUMENTS = sorted(
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md")
    for path in PROJECT.glob(pattern)
)


@cache
def options(command: str) -> set[str]:
    """The long options in the usage of a command."""
    argv = [sys.executable, "-m", "ipttrace", *([command] if command else []), "--help"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    return {"--help", *re.findall(r"--[a-z-]+", text.split("\n\n")[0])}


def completed(*words: str) -> list[str]:
    """What bash offers after these words."""
    script = (
        "source completions/ipttrace.bash;"
        f' COMP_WORDS=(ipttrace "$@"); COMP_CWORD={len(words)}; COMP_LINE="${{COMP_WORDS[*]}}";'
        r' [[ $(complete -p ipttrace) =~ -F\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" ipttrace;'
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
def test_every_option_is_in_the_man_page_and_is_completed(command: str) -> None:
    page = PAGE.read_text()
    expected = options(command)
    for option in expected:
        assert f"Fl {option[1:]}" in page, option
    words = [command, "--"] if command else ["--"]
    assert set(completed(*words)) == expected


@pytest.mark.parametrize("name", ["ipttrace.bash", "ipttrace.fish", "_ipttrace"])
def test_the_completions_are_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN the current options, WHEN the completions are generated
    monkeypatch.syspath_prepend(str(PROJECT / "tools"))
    import completions

    # THEN the files that make setup wrote are the same; else run make setup
    assert (PROJECT / "completions" / name).read_text() == made(completions)[name]


@cache
def made(completions: ModuleType) -> dict[str, str]:
    files: dict[str, str] = completions.made()
    return files


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "ipttrace.bash"), ("fish", "ipttrace.fish"), ("zsh", "_ipttrace")]
)
def test_each_shell_can_parse_its_completions(shell: str, name: str) -> None:
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


def test_after_two_dashes_no_option_is_completed() -> None:
    assert completed("print", "--", "--") == []
    assert completed("lab", "--", "ip", "--") == []


def test_commands_and_their_choices_are_completed() -> None:
    assert set(completed("")) == set(COMMANDS)
    assert completed("export", "x.iptr", "--format", "p") == ["pcapng"]
    assert completed("print", "--engine", "k") == ["kernel"]


def test_every_field_is_in_the_man_page() -> None:
    page = PAGE.read_text()
    fields = page[page.index(".Sh FIELDS") : page.index(".Sh EXIT STATUS")]
    for field in FIELDS:
        assert re.search(rf"(^\.It |, ){field}\b", fields, re.MULTILINE) or re.search(
            rf"[ ,]{field}( |$|,)", fields, re.MULTILINE
        ), field


def test_the_synopsis_and_the_list_of_commands_are_complete() -> None:
    page = PAGE.read_text()
    synopsis = page[page.index(".Sh SYNOPSIS") : page.index(".Sh DESCRIPTION")]
    named = re.findall(r"[a-z]+", " ".join(re.findall(r"^\.Cm ([a-z| ]+)", synopsis, re.MULTILINE)))
    assert named == list(COMMANDS)
    listed = page[page.index(".Ss Commands") : page.index(".Sh OPTIONS")]
    assert re.findall(r"^\.It Cm ([a-z]+)", listed, re.MULTILINE) == list(COMMANDS)


def test_every_document_of_commands_has_the_same_summaries() -> None:
    for name in ("ipttrace.fish", "_ipttrace"):
        text = (PROJECT / "completions" / name).read_text()
        for command in commands.COMMANDS:
            assert command.summary in text, (name, command.name)
    for command in commands.COMMANDS:
        assert f"ipttrace {command.name} " in commands.epilog()
        assert command.summary in commands.epilog()


def test_every_key_of_the_screen_is_in_the_man_page() -> None:
    from ipttrace.tui.app.keys import key_sections
    from ipttrace.tui.key_words import key_names

    page = PAGE.read_text()
    keys = page[page.index(".Sh KEYS") : page.index(".Sh QUERY LANGUAGE")]
    there = set(re.sub(r"\\(&|\(aq)", lambda m: "'" if m[1] == "(aq" else "", keys).split())
    spelt = {"⏎": "Enter", "⌫": "Backspace", "↑": "Up", "↓": "Down", "←": "Left", "→": "Right"}
    for binding in (one for _, bindings in key_sections() for one in bindings):
        names = [spelt.get(name, name) for name in key_names(binding.key).split()]
        assert any(name in there or name.capitalize() in there for name in names), binding.key


def test_the_man_page_has_the_fields_in_the_order_of_csv() -> None:
    page = PAGE.read_text()
    fields = page[page.index(".Sh FIELDS") : page.index(".Sh EXIT STATUS")]
    listed = re.findall(r"^\.It ([a-z_ ,]+)$", fields, re.MULTILINE)
    assert [name for line in listed for name in re.findall("[a-z_]+", line)] == list(FIELDS)


def test_csv_is_as_documented() -> None:
    # GIVEN rules whose texts have commas and quotes
    argv = [sys.executable, "-m", "ipttrace", "export", str(DATA / "screens.iptr")]
    data = subprocess.run(argv, capture_output=True, check=True, cwd=PROJECT).stdout
    # THEN each line ends in CR LF, the first has the documented names, and there is no mark
    lines = data.split(b"\r\n")
    assert lines[-1] == b""
    assert b"\n" not in b"".join(lines)
    assert lines[0].decode().split(",") == list(FIELDS)
    # AND cells are quoted if, and only if, they have a comma or a quote
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    quoted = 0
    for line, row in zip(lines, rows, strict=False):
        cells = ['"' + one.replace('"', '""') + '"' if set(one) & set(',"') else one for one in row]
        assert ",".join(cells).encode() == line
        quoted += cells != row
    assert quoted > 0
    # AND a rule that begins with - has an apostrophe
    rules = [row[FIELDS.index("rule")] for row in rows[1:]]
    assert any(rule.startswith("'-") for rule in rules)
    assert not any(rule.startswith("-") for rule in rules)


README = (PROJECT / "README.md").read_text()


def test_every_key_in_the_readme_is_a_key_of_the_screen() -> None:
    from ipttrace.tui.app.keys import key_sections
    from ipttrace.tui.key_words import key_names

    there = {
        name
        for _, bindings in key_sections()
        for one in bindings
        for name in key_names(one.key).split()
    }
    (table,) = re.findall(r"^\| key \| does \|\n\|[ |-]*\n((?:\|.*\n)+)", README, re.MULTILINE)
    spelt = {"Enter": "⏎", "Backspace": "⌫"}
    keys = [line.split("|")[1] for line in table.splitlines()]
    assert len(keys) > 10
    for key in " ".join(keys).replace("`", " ").replace(",", " , ").split():
        if key not in ("…", ","):
            assert spelt.get(key, key) in there, key


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_in_a_document_is_one_of_a_command(document: str) -> None:
    known = {option for command in ("", *COMMANDS) for option in options(command)}
    text = (PROJECT / document).read_text()
    for line in re.findall(r"\bipttrace [^`\n]*", text):
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", line.split(" -- ")[0]):
            assert option in known, line


def test_every_query_in_the_help_works() -> None:
    from ipttrace.trace import query
    from ipttrace.tui.app.help_words import QUERY

    asked = [
        text.replace("…", "80" if text.startswith("port") else "10.1.0.2")
        for words in QUERY
        for part in words
        for text in re.split(r", (?=[a-z]+[=<>])|; ", part)
        if re.match(r"[a-z]+ ?(=|>|in )|drop and", text)
    ]
    assert len(asked) > 5
    for text in asked:
        assert query.compile(text).text


def test_groff_has_no_warning_about_the_man_page() -> None:
    done = subprocess.run(
        ["groff", "-man", "-mandoc", "-ww", "-z", "-Tutf8", str(PAGE)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (PROJECT / document).read_text()
    paths = re.findall(r"`((?:ipttrace|kmod|bpf|docs|tests|tools)/[A-Za-z0-9_./-]+)`", text)
    paths += [f"ipttrace/{path}" for path in re.findall(r"`(capture/[A-Za-z0-9_./-]+)`", text)]
    assert [path for path in paths if not (PROJECT / path).exists()] == []


@pytest.mark.parametrize("way", "abcde")
def test_the_ways_through_the_tree_pass_no_file_twice(way: str) -> None:
    text = (PROJECT / "docs" / "internals.md").read_text()
    chosen = re.search(rf"^\*\*\({way}\).*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert chosen is not None
    files = re.findall(r"`((?:ipttrace|kmod|bpf)/[^`]+)`", chosen.group())
    assert len(files) > 10
    assert len(files) == len(set(files))
