# SPDX-License-Identifier: GPL-2.0-only
"""The table of commands, from which the help, the completions and the man page's test are made.

A command is a module with `build_parser` and `run`, imported when it is used.  Must
not import a command at the top: `agent` would pay for the screen.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast


class _Module(Protocol):
    def build_parser(self) -> argparse.ArgumentParser: ...

    def run(self, argv: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class Command:
    """One command: its name, its arguments in short, and what it does."""

    name: str  # "": the live screen
    arguments: str
    summary: str
    module: str

    def build_parser(self) -> argparse.ArgumentParser:
        """Returns the parser of its arguments."""
        return self._load().build_parser()

    def run(self, argv: Sequence[str]) -> int:
        """Runs it with the arguments that follow its name; returns the exit status."""
        return self._load().run(argv)

    def _load(self) -> _Module:
        return cast(_Module, importlib.import_module(f"ipttrace.cli.{self.module}"))


SCREEN: Final = Command("", "[EXPR]", "live screen on this host", "screen")
COMMANDS: Final = (
    Command("print", "[EXPR]", "print rows as lines", "print"),
    Command("drops", "[EXPR]", "print packets that are dropped, where and why", "drops"),
    Command("sockets", "[EXPR]", "print handshakes, and which process gets them", "sockets"),
    Command("record", "FILE [EXPR]", "record the stream to a file", "record"),
    Command("replay", "FILE", "show a recording on the screen or as lines", "replay"),
    Command(
        "export", "FILE --format F", "convert a recording to text, csv, jsonl or pcapng", "export"
    ),
    Command("lab", "[-- COMMAND ...]", "live screen on a throwaway VM with traffic in it", "lab"),
    Command("demo", "[EXPR]", "live screen on a small isolated network with traffic", "demo"),
    Command(
        "whatif", "PACKET", "send a packet through a copy of the rules, and show its way", "whatif"
    ),
    Command(
        "whynot", "RULE PACKET", "show which conditions of a rule a packet does not meet", "whynot"
    ),
    Command(
        "compare",
        "OLD NEW",
        "list packets of a recording that meet another fate with other rules",
        "compare",
    ),
    Command("test", "FILE", "test a firewall: packets, and what is to become of them", "test"),
    Command("snapshot", "[FILE]", "write the network and rules of a host to a file", "snapshot"),
    Command(
        "guard", "RULES", "deny connect, accept and receive by rules, as long as it runs", "guard"
    ),
    Command("doctor", "", "check what this machine can do and what it lacks", "doctor"),
    Command("config", "", "print the default config file of the screen", "config"),
    Command("agent", "[EXPR]", "the privileged half: writes the stream to stdout", "agent"),
)

# The only word of pcap-filter that resembles a command (export).
_EXPR_WORDS: Final = ("port",)


def find(name: str) -> Command | None:
    """Returns the command called `name`."""
    return next((command for command in COMMANDS if command.name == name), None)


def similar(word: str) -> str | None:
    """Returns the name of the command that `word` is probably a misspelling of."""
    if word in _EXPR_WORDS:
        return None
    names = [command.name for command in COMMANDS]
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.7)), None)


def epilog() -> str:
    """Returns the list of commands that ends `ipttrace --help`."""
    lines = [
        (SCREEN.arguments, SCREEN.summary),
        ("--ssh HOST [EXPR]", "the same for another host, or several"),
        *((f"{one.name} {one.arguments}".rstrip(), one.summary) for one in COMMANDS),
    ]
    width = max(len(arguments) for arguments, _ in lines)
    listed = "\n".join(f"  ipttrace {arguments:{width}}  {text}" for arguments, text in lines)
    return (
        f"commands:\n{listed}\n\n"
        "EXPR is a pcap-filter(7) expression, evaluated in the kernel: 'tcp port 443'.\n"
        "`ipttrace COMMAND --help` lists the options of a command."
    )
