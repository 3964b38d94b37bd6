# SPDX-License-Identifier: GPL-2.0-only
"""A rule of nftables in the copy: rules of one condition each, put in front of it.

The packet's values come from the kernel too: a rule that adds the value to a set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipttrace.text import clean
from ipttrace.trace.row import Row
from ipttrace.trace.rules import family_name
from ipttrace.whatif.answer.ask import ask
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.whynot import named
from ipttrace.whatif.whynot.apart import Apart, Asked, visit
from ipttrace.whatif.whynot.place import Place

_MOST: Final = 256  # conditions of a rule
_SET: Final = "ipttrace_value_"
_COUNTER: Final = {"counter": {"packets": 0, "bytes": 0}}
# Statements that end a rule if they are not fulfilled.
_ASKING: Final = ("match", "limit", "quota", "ct count")
_UNKNOWN: Final = ("xt",)
_VALUES: Final = 200  # characters


@dataclass(frozen=True, slots=True)
class _Part:
    """A condition: an element of the rule's list of expressions; `known`: it can be asked."""

    statement: dict[str, Any]
    known: bool = True

    @property
    def about(self) -> str:
        """What it compares, in nft's words; "" if that cannot be written."""
        match = self.statement.get("match") or self.statement.get("vmap")
        if isinstance(match, dict):
            return named.expression(match.get("left") or match.get("key"))
        return ""


class _Chain:
    """A chain of the copy: its rules change while they are asked."""

    def __init__(self, copy: Copy, place: Place) -> None:
        self.copy = copy
        self.place = place
        family = family_name(place.table.family)
        self.where = {"family": family, "table": place.table.table, "chain": place.chain}

    def rules(self) -> list[dict[str, Any]]:
        """Returns its rules in order, as JSON.  Raises WhatIfError."""
        done = self.copy.run(["nft", "-j", "list", "chain", *self.where.values()])
        try:
            listed = json.loads(done.output)["nftables"] if not done.status else []
        except (ValueError, KeyError, TypeError):
            listed = []
        rules = [one["rule"] for one in listed if "rule" in one]
        if len(rules) < self.place.number:
            raise WhatIfError(f"{self.place}: nft does not print it: {clean(done.reason, 120)}")
        return rules

    def put_in(self, handle: int, lists: Sequence[list[dict[str, Any]]]) -> str:
        """Puts rules in front of one; returns why they are refused, "" if they are not."""
        rules = [{**self.where, "handle": handle, "expr": one} for one in lists]
        return self.change([{"insert": {"rule": one}} for one in rules])

    def remove(self, count: int) -> None:
        """Removes the rules in front of the rule."""
        first = self.place.number - 1
        handles = [one["handle"] for one in self.rules()[first : first + count]]
        self.change([{"delete": {"rule": {**self.where, "handle": one}}} for one in handles])

    def change(self, changes: Sequence[dict[str, Any]]) -> str:
        """Carries out changes, all or none; returns why not."""
        done = self.copy.run(["nft", "-j", "-f", "-"], json.dumps({"nftables": list(changes)}))
        return clean(done.reason, 120) if done.status else ""

    def words(self, text: str) -> str:
        """Carries out changes in nft's words; returns why not."""
        done = self.copy.run(["nft", "-f", "-"], text)
        return clean(done.reason, 120) if done.status else ""


def apart(copy: Copy, packet: Packet, place: Place) -> Apart:
    """Returns the conditions of a rule that the packet comes to.  Raises WhatIfError."""
    chain = _Chain(copy, place)
    rule = chain.rules()[place.number - 1]
    handle = int(rule["handle"])
    parts = _parts(rule.get("expr", []))
    refused: dict[int, str] = {
        at: "not nftables' own: cannot be asked by itself"
        for at, one in enumerate(parts)
        if not one.known
    }
    asked = [at for at in range(len(parts)) if at not in refused]
    lists = [[parts[at].statement] for at in asked]
    if chain.put_in(handle, [[_COUNTER], *lists]):
        chain.put_in(handle, [[_COUNTER]])
        for at in list(asked):
            if reason := chain.put_in(handle, [[parts[at].statement]]):
                refused[at] = f"cannot be asked by itself: {reason}"
                asked.remove(at)
    count = 1 + len(asked)
    try:
        answer = ask(copy, packet)
        row, hits = visit(answer, copy.trace.rulesets, place, count)
        texts = _texts(copy, place, row, count)
    finally:
        chain.remove(count)
    met = {at: number in hits for number, at in enumerate(asked, 1)}
    failed = [at for at, one in met.items() if not one]
    values = _values(chain, packet, handle, {at: parts[at].about for at in failed})
    shown = {at: texts[number] for number, at in enumerate(asked, 1)}
    return Apart(
        place,
        tuple(
            Asked(
                shown.get(at) or _plain(one.statement),
                met.get(at),
                refused.get(at) or (values.get(at) or _of_row(one, row) if at in failed else ""),
            )
            for at, one in enumerate(parts)
        ),
    )


def _parts(statements: object) -> list[_Part]:
    """The conditions of a rule; those that may send the packet away come last."""
    found: list[_Part] = []
    last: list[_Part] = []
    for one in statements if isinstance(statements, list) else []:
        kind = next(iter(one), "") if isinstance(one, dict) else ""
        if kind in _UNKNOWN:
            found.append(_Part(one, known=False))
        elif kind in _ASKING:
            found.append(_Part(one))
        elif kind == "vmap" or (kind and _has_map(one)):
            last.append(_Part(one))
    if len(found) + len(last) > _MOST:
        raise WhatIfError("the rule has too many conditions")
    return found + last


def _has_map(value: object) -> bool:
    if isinstance(value, dict):
        return "map" in value or any(_has_map(one) for one in value.values())
    return isinstance(value, list) and any(_has_map(one) for one in value)


def _texts(copy: Copy, place: Place, row: Row, count: int) -> list[str]:
    """The texts of the rules in front, as nft writes them."""
    first = place.number - 1
    for table in copy.trace.rulesets.tables(row.netns):
        if (table.family, table.table) == (place.table.family, place.table.table):
            rules: Sequence[str] = table.chains[place.chain].rules
            return list(rules[first : first + count])
    return [""] * count


def _values(chain: _Chain, packet: Packet, handle: int, about: dict[int, str]) -> dict[int, str]:
    """The packet's values, by condition, of what can be written to a set."""
    family, table, name = chain.where.values()
    made: dict[int, str] = {}
    for at, words in about.items():
        if words and all(_is_word(one) for one in (table, name)):
            one = f"{_SET}{at}"
            reason = chain.words(
                f"add set {family} {table} {one} {{ typeof {words}; flags dynamic; size 64; }}\n"
                f"insert rule {family} {table} {name} handle {handle} add @{one} {{ {words} }}\n"
            )
            if not reason:
                made[at] = one
    if not made:
        return {}
    sets = [f"set {family} {table} {one}\n" for one in made.values()]
    try:
        # What the connection's first packet had does not count.
        ask(chain.copy, packet, lambda: _flush(chain, sets))
        found = {at: _elements(chain, one) for at, one in made.items()}
    finally:
        chain.remove(len(made))
        chain.words("".join(f"delete {one}" for one in sets))
    return found


def _flush(chain: _Chain, sets: Sequence[str]) -> None:
    chain.words("".join(f"flush {one}" for one in sets))


def _is_word(name: str) -> bool:
    return name.isascii() and name.replace("_", "").replace("-", "").replace(".", "").isalnum()


def _elements(chain: _Chain, name: str) -> str:
    family, table, _ = chain.where.values()
    output = chain.copy.run(["nft", "list", "set", family, table, name]).output
    _, mark, rest = output.partition("elements = {")
    return clean(" ".join(rest.partition("}")[0].split()), _VALUES) if mark else ""


def _of_row(part: _Part, row: Row) -> str:
    """The packet's protocol, if what the condition is about belongs to another one."""
    match = part.statement.get("match") or part.statement.get("vmap")
    left = match.get("left") or match.get("key") if isinstance(match, dict) else None
    if "payload" in json.dumps(left) or "option" in json.dumps(left):
        version = {4: "IPv4", 6: "IPv6"}.get(row.family, "")
        return f"{row.proto.lower()}, {version}".strip(", ")
    return ""


def _plain(statement: dict[str, Any]) -> str:
    """A condition that nft did not print."""
    if part := named.expression(next(iter(statement.values()), None)):
        return part
    return clean(json.dumps(statement), 120)
