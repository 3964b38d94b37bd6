#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes completions/ out of what `ipttrace --help` says, for bash, fish and zsh.

Run it after a change of options; a test says when.
Must not import the program: what it says is what people are told.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

# What stands for a value in the usage → what is offered for it; nothing for others.
FILE, HOST, NETNS = "file", "host", "netns"
OFFERED = {"F": FILE, "FILE": FILE, "HOST": HOST, "NAME": NETNS}
WORDS = {"RELEASE": ("6.1", "6.12")}
AGAIN = ("--ssh",)  # may be given more than once

_SPDX = "# SPDX-License-Identifier: GPL-2.0-only\n"
_MADE = "# Made by tools/completions.py of what the program says: change nothing here.\n"


@dataclass
class Option:
    name: str
    value: str = ""  # what stands for its value; "" takes none
    words: tuple[str, ...] = ()  # its values
    help: str = ""

    @property
    def offered(self) -> str:
        return OFFERED.get(self.value, "")


@dataclass
class Command:
    name: str  # "": the screen
    help: str = ""
    options: list[Option] = field(default_factory=list)
    file: bool = False  # takes one
    expr: bool = False


def said(*words: str) -> str:
    """What --help says, nothing in it wrapped."""
    return subprocess.run(
        [sys.executable, "-m", "ipttrace", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "1000"},
    ).stdout


def commands() -> list[Command]:
    """All of them, the screen first."""
    screen = said()
    listed = re.findall(r"^  ipttrace ([a-z]+)\b.*?  +(.+)$", screen, re.MULTILINE)
    made = [_command("", "", screen)]
    return made + [_command(name, text, said(name)) for name, text in listed]


def _command(name: str, text: str, told: str) -> Command:
    usage = told.split("\n\n")[0]
    command = Command(name, text, file=" FILE" in re.sub(r"\[.*?\]", "", usage))
    command.expr = "[EXPR ...]" in usage
    # A long option has its text on the line below.
    told = re.sub(r"\n {10,}", "  ", told[told.index("\noptions:") :])
    for found in re.finditer(
        r"^  (?:-\w, )?(--[a-z-]+)(?: (\S+))?(?:  +(.+))?$", told, re.MULTILINE
    ):
        option = Option(found[1], found[2] or "", help=found[3] or "")
        if option.value.startswith("{"):
            option.words = tuple(option.value.strip("{}").split(","))
            option.value = option.name.lstrip("-").upper()
        else:
            option.words = WORDS.get(option.value, ())
        command.options.append(option)
    return command


def _valued(of: list[Command]) -> dict[str, Option]:
    """Options that take a value, by name: the same everywhere."""
    return {option.name: option for command in of for option in command.options if option.value}


def bash(of: list[Command]) -> str:
    names = " ".join(command.name for command in of if command.name)
    lines = [
        _SPDX + _MADE,
        "# source it, or put it into /usr/share/bash-completion/completions/ipttrace.\n",
        "_ipttrace() {\n",
        "\tlocal word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n",
        f'\tlocal commands="{names}" command= options files=\n',
        '\t((COMP_CWORD > 1)) && [[ " $commands " == *" ${COMP_WORDS[1]} "* ]] &&'
        " command=${COMP_WORDS[1]}\n",
        "\tcase $before in\n",
    ]
    for name, option in _valued(of).items():
        offer = {
            FILE: "-f",
            HOST: "-A hostname",
            NETNS: '-W "$(ls /run/netns 2>/dev/null)"',
        }.get(option.offered, f'-W "{" ".join(option.words)}"' if option.words else "")
        reply = f'COMPREPLY=($(compgen {offer} -- "$word"))' if offer else "COMPREPLY=()"
        lines.append(f"\t{name}) {reply}; return ;;\n")
    lines.append("\tesac\n\tcase $command in\n")
    for command in of:
        options = " ".join(option.name for option in command.options)
        files = " files=1" if command.file else ""
        lines.append(f'\t{command.name or chr(34) * 2}) options="{options}"{files} ;;\n')
    lines.append(
        "\tesac\n"
        "\tif [[ $word == -* ]]; then\n"
        '\t\tCOMPREPLY=($(compgen -W "$options" -- "$word"))\n'
        "\telif ((COMP_CWORD == 1)); then\n"
        '\t\tCOMPREPLY=($(compgen -W "$commands" -- "$word"))\n'
        "\telif [[ $files ]]; then\n"
        '\t\tCOMPREPLY=($(compgen -f -- "$word"))\n'
        "\tfi\n"
        "}\n"
        "complete -F _ipttrace ipttrace\n"
    )
    return "".join(lines)


def fish(of: list[Command]) -> str:
    lines = [
        _SPDX + _MADE,
        "# Put it into ~/.config/fish/completions/ or /usr/share/fish/vendor_completions.d/.\n",
        "function __ipttrace_is -a wanted\n",
        "\tset -l words (commandline -opc)\n",
        "\tset -l command\n",
        f'\tcontains -- "$words[2]" {" ".join(one.name for one in of if one.name)}\n',
        "\tand set command $words[2]\n",
        '\ttest "$command" = "$wanted"\n',
        "end\n",
        "function __ipttrace_first\n",
        "\ttest (count (commandline -opc)) -eq 1\n",
        "end\n",
        "complete -c ipttrace -f\n",
    ]
    for command in of:
        is_it = f"complete -c ipttrace -n '__ipttrace_is \"{command.name}\"'"
        if command.name:
            lines.append(
                "complete -c ipttrace -n __ipttrace_first"
                f" -a {command.name} -d {_quoted(command.help)}\n"
            )
        if command.file:
            lines.append(f"{is_it} -F\n")
        for option in command.options:
            line = f"{is_it} -l {option.name[2:]}"
            if option.value:
                offer = {
                    FILE: " -r -F",
                    HOST: " -x -a '(__fish_print_hostnames)'",
                    NETNS: " -x -a '(path basename /run/netns/*)'",
                }
                words = f" -x -a '{' '.join(option.words)}'" if option.words else " -x"
                line += offer.get(option.offered, words)
            lines.append(f"{line} -d {_quoted(option.help)}\n" if option.help else f"{line}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """For fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def zsh(of: list[Command]) -> str:
    lines = [
        "#compdef ipttrace\n",
        _SPDX + _MADE,
        "# Put it into a folder of $fpath, as /usr/local/share/zsh/site-functions.\n",
        "_ipttrace_netns() {\n\tcompadd -- /run/netns/*(N:t)\n}\n",
        "_ipttrace() {\n",
        "\tlocal -a commands=(\n",
        *(f"\t\t{_word(one.name + ':' + one.help)}\n" for one in of if one.name),
        "\t)\n",
        "\tlocal command=${${commands%%:*}[(r)${words[2]}]}\n",
        "\tif (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then\n",
        "\t\t_describe command commands\n",
        "\t\treturn\n",
        "\tfi\n",
        "\tif [[ -n $command ]]; then\n",
        "\t\tshift words\n",
        "\t\t(( CURRENT-- ))\n",
        "\tfi\n",
        "\tcase $command in\n",
    ]
    for command in of:
        specs = [_spec(option) for option in command.options]
        if command.file:
            specs.append(_word(":file:_files"))
        if command.expr:
            specs.append(_word("*:pcap-filter expression: "))
        if command.name == "lab":
            specs.append(_word("*::command:_normal"))
        joined = " \\\n\t\t\t".join(specs)
        lines.append(f"\t{command.name or chr(39) * 2})\n\t\t_arguments : \\\n\t\t\t{joined} ;;\n")
    lines.append(
        "\tesac\n"
        "}\n"
        'if [[ ${funcstack[1]} == _ipttrace ]]; then\n\t_ipttrace "$@"\n'
        "else\n\tcompdef _ipttrace ipttrace\nfi\n"
    )
    return "".join(lines)


def _spec(option: Option) -> str:
    """For zsh's _arguments."""
    text = "[" + re.sub(r"([][\\])", r"\\\1", option.help) + "]" if option.help else ""
    name = ("*" if option.name in AGAIN else "") + option.name
    if not option.value:
        return _word(name + text)
    offer = {FILE: "_files", HOST: "_hosts", NETNS: "_ipttrace_netns"}
    words = f"({' '.join(option.words)})" if option.words else " "
    return _word(f"{name}={text}:{option.value.lower()}:{offer.get(option.offered, words)}")


def _word(text: str) -> str:
    """For zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def made() -> dict[str, str]:
    """The files' names and what belongs into them."""
    of = commands()
    return {"ipttrace.bash": bash(of), "ipttrace.fish": fish(of), "_ipttrace": zsh(of)}


def main() -> None:
    for name, text in made().items():
        (PROJECT / "completions" / name).write_text(text)


if __name__ == "__main__":
    main()
