# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace whynot`: which conditions of a rule a packet does not meet.

The exit status is 0 if it meets the rule, 3 if not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ipttrace.cli import copies, options
from ipttrace.cli.outcome import BadUsage

FORMATS = ("text", "jsonl")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace whynot",
        description="Sends a packet through a copy of the rules, and shows which conditions of a"
        " rule it does not meet, or what keeps it from coming there. Exit status: 0 it meets the"
        " rule, 3 it does not, 1 failed, 2 bad usage.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RULE PACKET",
        help="RULE: 'filter FORWARD 3', 'inet filter input 3', 'inet filter input handle 7';"
        " PACKET: as for ipttrace whatif",
    )
    copies.add_sources(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="output format (default: text)"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Asks why not; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(argv)
    copies.check_sources(parser, parsed)
    from ipttrace.whatif.copy.running import running
    from ipttrace.whatif.errors import WhatIfError
    from ipttrace.whatif.whynot import place, words
    from ipttrace.whatif.whynot.explain import why_not

    try:
        rule, rest = place.parse(" ".join(parsed.words))
    except WhatIfError as error:
        raise BadUsage(str(error)) from None
    with copies.failures():
        packet = copies.read_packet(rest)
        with running(copies.read_snapshot(parsed)) as copy:
            found = why_not(copy, packet, rule)
            notes = [*copy.snapshot.notes, *copy.notes]
            if parsed.format == "jsonl":
                text = json.dumps(words.as_json(found, notes), ensure_ascii=False) + "\n"
            else:
                text = "".join(f"{line}\n" for line in words.lines(found, notes))
            copies.write(text)
            return words.status(found)
