# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace test`: packets through a copy of the rules, against what a file expects.

The exit status is 0 if all tests pass, 3 if one does not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipttrace.cli import copies, options
from ipttrace.cli.outcome import Failed

if TYPE_CHECKING:
    from ipttrace.whatif.checks.check import Result
    from ipttrace.whatif.checks.file import Test
    from ipttrace.whatif.copy.running import Copy


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace test",
        description="Sends the packets of a YAML file through a copy of the rules, and compares"
        " what becomes of them with what the file expects. Exit status: 0 all as expected, 3 not,"
        " 1 failed, 2 bad usage.",
    )
    parser.add_argument("file", metavar="FILE", help="tests in YAML")
    copies.add_sources(parser, "rules from FILE instead of those that the tests name")
    parser.add_argument("--junit", metavar="F", help="also write the results as JUnit XML to F")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the tests; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_args(argv)
    copies.check_sources(parser, parsed)
    from ipttrace import files
    from ipttrace.whatif.checks import file, junit, words
    from ipttrace.whatif.copy import changes
    from ipttrace.whatif.copy.running import running

    with copies.failures():
        tests = file.read(parsed.file)
        if not (parsed.network or parsed.netns or parsed.ssh):
            parsed.network = tests.network
        if parsed.rules is None and tests.rules is not None:
            parsed.rules = list(tests.rules)
        commands = [changes.parse(text) for text in tests.changes]
        with running(copies.read_snapshot(parsed)) as copy:
            changes.carry_out(copy, commands)
            results = [_result(copy, test) for test in tests.tests]
            notes = [*copy.snapshot.notes, *copy.notes]
        if parsed.junit:
            try:
                files.write(parsed.junit, junit.xml(results, parsed.file))
            except OSError as error:
                raise Failed(f"{parsed.junit}: {error.strerror}") from None
        copies.write("".join(f"{line}\n" for line in words.lines(results, notes)))
        return words.status(results)


def _result(copy: Copy, test: Test) -> Result:
    from ipttrace.whatif.answer.ask import ask
    from ipttrace.whatif.checks.check import Result, check
    from ipttrace.whatif.errors import WhatIfError
    from ipttrace.whatif.packet.recorded import find
    from ipttrace.whatif.packet.words import Place

    started = time.monotonic()
    try:
        packet = test.packet
        answer = ask(copy, find(packet) if isinstance(packet, Place) else packet)
    except WhatIfError as error:
        if copy.ended:
            raise
        return Result(test, (), (), f"the packet cannot be sent: {error}")
    return check(test, answer, time.monotonic() - started)
