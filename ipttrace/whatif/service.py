# SPDX-License-Identifier: GPL-2.0-only
"""`python -m ipttrace.whatif.service`: one answer for the screen, which has threads and no root.

Reads one JSON object from stdin, ``{"netns": name or null, "packet": {…}, "rule": words or null}``,
and writes one: ``{"lines": [[text, key], …], "notes": […]}``, for a rule ``{"lines": [text, …]}``,
or ``{"error": text}``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any, Final

from ipttrace.whatif.answer import ask, way
from ipttrace.whatif.answer import words as answer_words
from ipttrace.whatif.copy.running import running
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Connection, Packet
from ipttrace.whatif.snapshot import here
from ipttrace.whatif.whynot import place, words
from ipttrace.whatif.whynot.explain import why_not

_MOST: Final = 1 << 20
_BYTES: Final = ("raw", "payload")
_TUPLES: Final = ("icmp", "notes", "original", "fragment")


def request(packet: Packet, netns: str | None, rule: str | None) -> str:
    """Returns the request for a packet."""
    values = asdict(packet)
    values.update({name: getattr(packet, name).hex() for name in _BYTES})
    return json.dumps({"netns": netns, "packet": values, "rule": rule})


def _packet(values: dict[str, Any]) -> Packet:
    values.update({name: bytes.fromhex(values[name]) for name in _BYTES})
    values.update({name: values[name] and tuple(values[name]) for name in _TUPLES})
    values["notes"] = tuple(values["notes"] or ())
    if one := values["connection"]:
        one["original"] = tuple(one["original"])
        one["reply"] = one["reply"] and tuple(one["reply"])
        values["connection"] = Connection(**one)
    return Packet(**values)


def answer(text: str) -> dict[str, Any]:
    """Returns the answer to a request.  Raises WhatIfError."""
    wanted = json.loads(text)
    packet = _packet(wanted["packet"])
    with running(here.read(wanted["netns"])) as copy:
        notes = [*copy.snapshot.notes, *copy.notes]
        if wanted["rule"] is not None:
            rule, _ = place.parse(wanted["rule"])
            return {"lines": words.lines(why_not(copy, packet, rule), notes)}
        found = ask.ask(copy, packet)
        lines = [[one.text, one.key] for one in way.way(found, copy.trace.store)]
        return {"lines": lines, "notes": answer_words.lines(found, notes)}


def main() -> int:
    """Answers one request; returns the exit status."""
    try:
        found = answer(sys.stdin.read(_MOST))
    except WhatIfError as error:
        found = {"error": str(error)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
