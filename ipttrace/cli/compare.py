# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace compare`: which packets of a recording meet another fate with other rules.

The exit status is 0 if none does, 3 if one does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ipttrace.cli import copies, options

if TYPE_CHECKING:
    from ipttrace.trace.session import Trace
    from ipttrace.whatif.compare.distinct import Distinct
    from ipttrace.whatif.compare.fates import Outcome
    from ipttrace.whatif.snapshot.model import Snapshot

FORMATS = ("text", "jsonl")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace compare",
        description="Sends each distinct packet of a recording through two sets of rules, and lists"
        " those whose fate differs. Exit status: 0 none does, 3 some do, 1 failed, 2 bad usage.",
    )
    parser.add_argument("old", metavar="OLD", help="rules, or a snapshot with its network")
    parser.add_argument("new", metavar="NEW", help="likewise")
    parser.add_argument(
        "--packets", metavar="FILE", required=True, help="the recording with the packets"
    )
    copies.add_sources(parser, "rules that both have besides, for example sets; may be repeated")
    parser.add_argument("--query", metavar="QUERY", help="only rows that match: 'verdict=DROP'")
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="output format (default: text)"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Compares; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_args(argv)
    copies.check_sources(parser, parsed)
    options.compile_query(parsed, "query")
    from ipttrace.whatif.compare import fates, words
    from ipttrace.whatif.compare.distinct import distinct
    from ipttrace.whatif.packet.recorded import read_trace

    with copies.failures():
        old, new = _sides(parsed)
        trace = read_trace(parsed.packets)
        found = distinct(trace.store, _rows(trace, parsed))
        notes = [f"{found.left_out} packets are left out: too many differ"] * bool(found.left_out)
        results = [_outcomes(side, trace, found, notes, name)
                   for side, name in ((old, "old"), (new, "new"))]  # fmt: skip
        result = fates.compared(found.kinds, *results)
        if parsed.format == "jsonl":
            copies.write(json.dumps(words.as_json(result, notes), ensure_ascii=False) + "\n")
        else:
            copies.write("".join(f"{line}\n" for line in words.lines(result, notes)))
        return words.status(result)


def _sides(parsed: argparse.Namespace) -> tuple[Snapshot, Snapshot]:
    """The two snapshots; the network of a file of rules is that of the other side or the host."""
    from ipttrace.whatif.snapshot.files import read_either

    read = [read_either(path) for path in (parsed.old, parsed.new)]
    whole = [one for one, _ in read if one is not None]
    elsewhere = parsed.network or parsed.netns or parsed.ssh
    parsed.rules = parsed.rules or []
    if whole and not elsewhere:
        base = replace(whole[0], rulesets=copies.read_rules(parsed.rules))
    else:
        base = copies.read_snapshot(parsed)
    old, new = (
        replace(base if one is None or elsewhere else one, rulesets=(*base.rulesets, *rules))
        for one, rules in read
    )
    return old, new


def _rows(trace: Trace, parsed: argparse.Namespace) -> Sequence[int]:
    import numpy as np

    from ipttrace.trace.query import context_of

    store = trace.store
    if parsed.query is None:
        return range(store.first, store.end)
    names = {int(inode): str(name) for inode, name in trace.hello.get("netns", {}).items()}
    context = context_of(trace.store, netns=names)
    return [
        int(seq)
        for part in store.parts()
        for seq in np.flatnonzero(parsed.query.mask(part, context)) + part.first
    ]


def _outcomes(
    side: Snapshot, trace: Trace, found: Distinct, notes: list[str], name: str
) -> list[Outcome]:
    from ipttrace.whatif.compare import fates
    from ipttrace.whatif.copy.running import running

    with running(side) as copy:
        for text in (*side.notes, *copy.notes):
            if text not in notes:
                notes.append(text)
        progress = _progress(name, len(found.kinds))
        try:
            return fates.outcomes(copy, trace.store, found.kinds, progress)
        finally:
            progress(-1)


def _progress(name: str, count: int) -> Callable[[int], None]:
    """Shows how far it is, on a terminal."""

    def show(number: int) -> None:
        if sys.stderr.isatty() and (number < 0 or number % 20 == 0):
            text = "" if number < 0 else f"{name}: packet {number} of {count}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    return show
