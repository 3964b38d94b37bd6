# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of fields that are more than one column: addresses, paths, rules' texts.

Must not loop over rows in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ipttrace.netfilter import IP_VERSIONS
from ipttrace.stream import record
from ipttrace.trace.arrays.hashing import Array, Hash
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.query import values
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import EQUAL, SEARCH, Hit, Kind, Known, Number, either
from ipttrace.trace.query.names import NameTable, predicate_of
from ipttrace.trace.query.patterns import Predicate
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.rules.families import NFT
from ipttrace.trace.store import Part

_ETHERNET: Final = 14
_TRACE_ID: Final = re.compile("[0-9a-f]{1,8}")
_RULENUM: Final = re.compile("0*[1-9][0-9]{0,8}")
_POLICY: Final = record.MATCHES.index("policy")


class Address(Kind):
    """IPv4 and IPv6 in 16 bytes; `version` gives 4, 6 or 0 where it is not known."""

    title = "an address"
    operators = EQUAL

    def __init__(self, column: str, version: Callable[[Part], Array]) -> None:
        self._column = column
        self._version = version

    def known(self, part: Part, context: Context) -> Array | None:
        known: Array = self._version(part) != 0
        return known

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        return either([self._inside(values.network(value)) for value in wanted])

    def _inside(self, network: values.Network) -> Hit:
        kind = np.uint32 if network.version == 4 else np.uint64
        wants = np.frombuffer(network.want, kind)
        masks = np.frombuffer(network.mask, kind)
        full = np.iinfo(kind).max

        def inside(part: Part, context: Context) -> Array:
            words = np.ascontiguousarray(part.columns[self._column]).view(kind)
            found: Array = self._version(part) == network.version
            for at, (want, mask) in enumerate(zip(wants, masks, strict=True)):
                if mask == full:
                    found &= words[:, at] == want
                elif mask:
                    found &= (words[:, at] & mask) == want
            return found

        return inside


class Mac(Kind):
    """A hardware address, or how it begins; `at`: where it stands in the header."""

    title = "a hardware address"
    operators = EQUAL

    def __init__(self, at: int) -> None:
        self._at = at

    def known(self, part: Part, context: Context) -> Array | None:
        known: Array = part.columns["mac_len"] == _ETHERNET
        return known

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        return either([self._begins(values.mac(value)) for value in wanted])

    def _begins(self, begin: bytes) -> Hit:
        def begins(part: Part, context: Context) -> Array:
            found = np.ones(len(part), bool)
            for at, byte in enumerate(begin, self._at):
                found &= part.columns["mac"][:, at] == byte
            return found

        return begins


class Fragment(Kind):
    """``id``, ``id:offset`` or ``id:offset+`` (more follow)."""

    title = "a fragment"
    operators = EQUAL

    def known(self, part: Part, context: Context) -> Array | None:
        known: Array = (part.columns["known"] & packet.FRAGMENT) != 0
        return known

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        return either([self._same(value) for value in wanted])

    def _same(self, value: Value) -> Hit:
        number, colon, offset = value.text.partition(":")
        want = values.number(value, {}, number)
        place = offset.removesuffix("+")
        at = values.number(value, {}, place, len(number) + 1) if colon else None
        if want > 0xFFFFFFFF or (at or 0) > 0xFFFF:
            raise value.wrong("not a fragment: as 4711, 4711:1480 or 4711:1480+")

        def same(part: Part, context: Context) -> Array:
            found: Array = part.columns["frag_id"] == want
            if at is not None:
                more = (part.columns["known"] & packet.MORE) != 0
                found &= part.columns["frag_off"] == at
                found &= more == offset.endswith("+")
            return found

        return same


class Netns(Kind):
    """A network namespace: its inode, or its name."""

    title = "a network namespace"
    operators = EQUAL + SEARCH

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        predicate = predicate_of(op, wanted, source)
        inodes = {
            values.number(value, {})
            for value in wanted
            if op == "=" and value.text.isascii() and value.text.isdigit()
        }

        def hit(part: Part, context: Context) -> Array:
            # What one host calls so is another namespace, with another name, elsewhere.
            meant = {place for place, name in context.netns.items() if predicate(name)}
            column, hosts = part.columns["netns"], part.columns["host"]
            if op == "~":
                # One without a name is shown by its number.
                both = hosts.astype(np.uint64) << np.uint64(32) | column
                there = ((each >> 32, each & 0xFFFFFFFF) for each in np.unique(both).tolist())
                meant.update(
                    place
                    for place in there
                    if place not in context.netns and predicate(str(place[1]))
                )
            found = np.zeros(len(part), bool)
            for inode in inodes:
                if inode <= 0xFFFFFFFF:
                    found |= column == np.uint32(inode)
            for host, inode in meant:
                if inode <= 0xFFFFFFFF and host <= 0xFF:
                    found |= (column == np.uint32(inode)) & (hosts == np.uint8(host))
            return found

        return hit


class Host(Kind):
    """Which host a row came from: its name, or its number."""

    title = "a host"
    operators = EQUAL + SEARCH

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        predicate = predicate_of(op, wanted, source)

        def hit(part: Part, context: Context) -> Array:
            names = [*context.hosts, *map(str, range(len(context.hosts), 256))]
            table = np.array([predicate(name) for name in names[:256]])
            if op == "=" and not table[: len(context.hosts)].any():
                table = np.array([predicate(str(at)) for at in range(256)])
            found: Array = table[part.columns["host"]]
            return found

        return hit


class TraceId(Number):
    """nftables' number of a packet, hexadecimal with ``0x`` before it or not."""

    title = "a trace id"
    operators = EQUAL
    maskable = False

    def __init__(self) -> None:
        super().__init__("trace_id", lambda part: part.columns["trace_id"] != 0)

    def interval(self, value: Value) -> values.Interval:
        digits = value.text.lower().removeprefix("0x")
        if not _TRACE_ID.fullmatch(digits):
            raise value.wrong("not a trace id: 8 digits of 0-9 and a-f, as 1f2e3d4c")
        return int(digits, 16), int(digits, 16)


class Path(Kind):
    """Any step of the way through the table: its chain, or ``chain:rulenum``.

    Of a rule whose number is not known: ``chain:?``.
    """

    title = "a path"
    operators = EQUAL + SEARCH

    def known(self, part: Part, context: Context) -> Array | None:
        known: Array = part.ends > part.begins
        return known

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        chains = NameTable(predicate_of(op, wanted, source))
        exact: list[tuple[NameTable, int]] = []
        for value in wanted if op == "=" else ():
            chain, colon, number = value.text.rpartition(":")
            if colon and chain and (number == "?" or _RULENUM.fullmatch(number)):
                named = Value(chain, True, value.start, value.end)
                wanted_number = 0 if number == "?" else int(number)
                exact.append((NameTable(predicate_of("=", [named], source)), wanted_number))

        def hit(part: Part, context: Context) -> Array:
            found = np.zeros(len(part), bool)
            if not len(part):
                return found
            first, last = int(part.begins[0]), int(part.ends[-1])
            ids = part.steps["chain"][first:last]
            steps = chains.hit(ids, context)
            for table, number in exact:
                same = part.steps["rulenum"][first:last] == number
                steps |= same & table.hit(ids, context)
            at = np.flatnonzero(steps) + first
            found[np.searchsorted(part.ends, at, "right")] = True
            return found

        return hit


class RuleText(Kind):
    """The text of the deciding rule, asked once for each rule."""

    title = "a text"
    operators = EQUAL + SEARCH
    implied = True

    def __init__(self) -> None:
        self._any = _Rules(lambda text: True)

    def known(self, part: Part, context: Context) -> Array | None:
        return self._any.hit(part, context)

    def hit(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Hit:
        return _Rules(predicate_of(op, wanted, source)).hit


# Rules that a query remembers.
_REMEMBERED: Final = 1 << 18


class _Rules:
    """Which rules are meant, by a hash of all that tells one rule from another."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        self._hash = Hash(6)
        # Of which store; hashes, ascending; whether each is meant.  Replaced whole.
        self._held: tuple[object, Array, Array] = (None, _NO_KEYS, _NO_KEYS.astype(bool))

    def hit(self, part: Part, context: Context) -> Array:
        found = np.zeros(len(part), bool)
        columns = part.columns
        if not context.rulesets:
            return found
        rows = np.flatnonzero(
            (columns["ruleset"] != 0) & (columns["chain"] != 0) & (columns["match"] != _POLICY)
        )
        if not rows.size:
            return found
        words = [columns[name][rows] for name in ("chain", "rulenum", "table", "netns", "ruleset")]
        kind = columns["tables"][rows].astype(np.uint32) << np.uint32(16)
        kind |= columns["family"][rows].astype(np.uint32) << np.uint32(8) | columns["host"][rows]
        hashes = self._hash.full([*words, kind])
        held, keys, meant = self._held
        if held is not context.names or len(keys) > _REMEMBERED:
            keys, meant = _NO_KEYS, _NO_KEYS.astype(bool)
        at, known = _looked_up(keys, hashes)
        if not known.all():
            missed = np.flatnonzero(~known)
            keys, meant = self._learn(part, context, rows[missed], hashes[missed], keys, meant)
            at, known = _looked_up(keys, hashes)
        if len(keys):
            found[rows] = meant[at] & known
        return found

    def _learn(
        self, part: Part, context: Context, rows: Array, hashes: Array, keys: Array, meant: Array
    ) -> tuple[Array, Array]:
        """Ask for the texts of new rules; those without one may have it later."""
        fresh, heads = np.unique(hashes, return_index=True)
        texts = [_text_of(part, context, row) for row in rows[heads].tolist()]
        there = [at for at, text in enumerate(texts) if text is not None]
        keys = np.concatenate([keys, fresh[there]])
        meant = np.concatenate([meant, [self._predicate(texts[at] or "") for at in there]])
        order = np.argsort(keys)
        keys, meant = keys[order], meant[order].astype(bool)
        self._held = (context.names, keys, meant)
        return keys, meant


_NO_KEYS: Final = np.zeros(0, np.uint64)


def _looked_up(keys: Array, hashes: Array) -> tuple[Array, Array]:
    """Where each hash is in `keys`, and whether it is."""
    if not len(keys):
        return np.zeros(len(hashes), np.intp), np.zeros(len(hashes), bool)
    at = np.searchsorted(keys, hashes)
    at[at == len(keys)] = 0
    return at, keys[at] == hashes


def _text_of(part: Part, context: Context, row: int) -> str | None:
    columns, names = part.columns, context.names
    family, tables = int(columns["family"][row]), int(columns["tables"][row])
    rules = context.rulesets.get(int(columns["host"][row]))
    if rules is None:
        return None
    return rules.text(
        int(columns["netns"][row]),
        NFT + tables if tables else IP_VERSIONS.get(family, family),
        names.text(int(columns["table"][row])),
        names.text(int(columns["chain"][row])),
        int(columns["rulenum"][row]),
        int(columns["ruleset"][row]),
    )


def versions(tracked: Known) -> Callable[[Part], Array]:
    """4 or 6 by the hook's family, 0 where conntrack knew nothing."""

    def version(part: Part) -> Array:
        family = part.columns["family"]
        found: Array = np.where(family == 2, np.uint8(4), np.uint8(0))
        found[family == 10] = 6
        found *= tracked(part)
        return found

    return version
