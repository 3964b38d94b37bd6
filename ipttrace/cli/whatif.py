# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace whatif`: a packet sent through a copy of the rules.

The exit status is that of the packet: 0 accepted, 3 dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipttrace.cli import copies, editor, options
from ipttrace.cli.outcome import BadUsage
from ipttrace.cli.stdout import open_output

if TYPE_CHECKING:
    from ipttrace.whatif.answer.ask import Answer
    from ipttrace.whatif.copy.running import Copy
    from ipttrace.whatif.packet.spec import Packet
    from ipttrace.whatif.snapshot.model import Snapshot

FORMATS = ("text", "csv", "jsonl")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace whatif",
        description="Sends a packet through a copy of the rules, and shows its way. Exit status:"
        " 0 accepted, 3 dropped, 1 failed, 2 bad usage.",
    )
    parser.add_argument(
        "packet",
        nargs="*",
        metavar="PACKET",
        help="'tcp 10.1.0.2:40000 > 10.2.0.2:443 in eth0 syn', 'udp > 10.2.0.2:53 out',"
        " 'from row 12 of trace.iptr', 'pcap FILE#3 in eth0'",
    )
    copies.add_sources(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="output format (default: text)"
    )
    parser.add_argument(
        "--with",
        dest="changes",
        action="append",
        metavar="COMMAND",
        help="also with this change, beside the way without it: 'iptables -I FORWARD 3 …';"
        " iptables, ip6tables, nft, ipset or ip; may be repeated",
    )
    parser.add_argument(
        "--edit",
        action="store_true",
        help="also with the rules as you edit them in $EDITOR, beside the way without it",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Sends the packet; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_intermixed_args(argv)
    copies.check_sources(parser, parsed)
    if not parsed.packet:
        parser.error('describe a packet: "tcp 10.1.0.2:40000 > 10.2.0.2:443 in eth0"')
    from ipttrace.whatif.answer import ask, words
    from ipttrace.whatif.copy.running import running

    commands = _commands(parsed.changes or [])
    if (commands or parsed.edit) and parsed.format == "csv":
        parser.error("--with and --edit have no csv")
    with copies.failures():
        packet = copies.read_packet(" ".join(parsed.packet))
        snapshot = copies.read_snapshot(parsed)
        if commands or parsed.edit:
            return _changed(snapshot, packet, commands, parsed)
        with running(snapshot) as copy:
            answer = ask.ask(copy, packet)
            _show(copy, answer, parsed.format)
            return words.status(answer)


def _commands(texts: Sequence[str]) -> list[list[str]]:
    from ipttrace.whatif.copy import changes
    from ipttrace.whatif.errors import WhatIfError

    try:
        return [changes.parse(text) for text in texts]
    except WhatIfError as error:
        raise BadUsage(str(error)) from None


def _changed(
    snapshot: Snapshot,
    packet: Packet,
    commands: Sequence[Sequence[str]],
    parsed: argparse.Namespace,
) -> int:
    """Shows the packet's way without and with the changes; returns the status with them."""
    from ipttrace.whatif.answer import ask, way, words
    from ipttrace.whatif.copy import changes
    from ipttrace.whatif.copy.running import running

    after_snapshot = editor.edited(snapshot) if parsed.edit else snapshot
    with running(snapshot) as copy:
        before = ask.ask(copy, packet)
        way_before = way.way(before, copy.trace.store)
        notes = copy.notes
    # Another copy: what sets and connections have kept of the packet does not count.
    with running(after_snapshot) as copy:
        changes.carry_out(copy, commands)
        after = ask.ask(copy, packet)
        way_after = way.way(after, copy.trace.store)
        notes = [*snapshot.notes, *notes, *(one for one in copy.notes if one not in notes)]
    if parsed.format == "jsonl":
        found = {"change": {
            **way.as_json(way_before, way_after),
            "without": words.as_json(before, [])["answer"],
            "with": words.as_json(after, notes)["answer"],
        }}  # fmt: skip
        text = json.dumps(found, ensure_ascii=False) + "\n"
    else:
        width = shutil.get_terminal_size((160, 24)).columns
        listed = way.beside(way_before, way_after, ("without", "with the change"), width)
        listed += words.lines(after, notes)
        text = "".join(f"{line}\n" for line in listed)
    copies.write(text)
    return words.status(after)


def _show(copy: Copy, answer: Answer, format: str) -> None:
    from ipttrace.whatif.answer import words

    output = open_output(format, copy.names)
    rows = b"".join(
        (
            output.begin(copy.trace.hello),
            output.rows(copy.trace.store, answer.rows)[0],
            output.end(),
        )
    )
    notes = [*copy.snapshot.notes, *copy.notes]
    lines = words.lines(answer, notes)
    if format == "jsonl":
        rows += json.dumps(words.as_json(answer, notes), ensure_ascii=False).encode() + b"\n"
    elif format == "text":
        rows += "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    with os.fdopen(os.dup(1), "wb") as file:
        file.write(rows)
    if format == "csv":
        for line in lines:
            print(line, file=sys.stderr)
