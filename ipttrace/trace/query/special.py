# SPDX-License-Identifier: GPL-2.0-only
"""Kinds of fields made of several columns: addresses, paths, rules' texts.

Must not loop over rows in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from ipttrace.netfilter import IP_VERSIONS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array, Hash
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.query import values
from ipttrace.trace.query.context import Context
from ipttrace.trace.query.kinds import EQUAL, SEARCH, HasValue, Kind, Matcher, Number, any_of
from ipttrace.trace.query.names import NameTable, predicate_of
from ipttrace.trace.query.patterns import Predicate
from ipttrace.trace.query.tree import Test, Value
from ipttrace.trace.rules import NFT
from ipttrace.trace.store import Part

_ETHERNET: Final = 14
_TRACE_ID: Final = re.compile("[0-9a-f]{1,8}")
_RULENUM: Final = re.compile("0*[1-9][0-9]{0,8}")


class Address(Kind):
    """An IPv4 or IPv6 address in 16 bytes; `version` gives 4, 6, or 0 if unknown."""

    title = "an address"
    operators = EQUAL

    def __init__(self, column: str, version: Callable[[Part], Array]) -> None:
        self._column = column
        self._version = version

    def has_value(self, part: Part, context: Context) -> Array | None:
        known: Array = self._version(part) != 0
        return known

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        return any_of([self._in_network(values.network(value)) for value in wanted])

    def _in_network(self, network: values.Network) -> Matcher:
        kind = np.uint32 if network.version == 4 else np.uint64
        wants = np.frombuffer(network.want, kind)
        masks = np.frombuffer(network.mask, kind)
        full = np.iinfo(kind).max

        def in_network(part: Part, context: Context) -> Array:
            words = np.ascontiguousarray(part.columns[self._column]).view(kind)
            found: Array = self._version(part) == network.version
            for at, (want, mask) in enumerate(zip(wants, masks, strict=True)):
                if mask == full:
                    found &= words[:, at] == want
                elif mask:
                    found &= (words[:, at] & mask) == want
            return found

        return in_network


class Mac(Kind):
    """A hardware address or a prefix of one; `at`: its offset in the Ethernet header."""

    title = "a hardware address"
    operators = EQUAL

    def __init__(self, at: int) -> None:
        self._at = at

    def has_value(self, part: Part, context: Context) -> Array | None:
        known: Array = part.columns["mac_len"] == _ETHERNET
        return known

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        return any_of([self._starts_with(values.mac(value)) for value in wanted])

    def _starts_with(self, prefix: bytes) -> Matcher:
        def starts_with(part: Part, context: Context) -> Array:
            found = np.ones(len(part), bool)
            for at, byte in enumerate(prefix, self._at):
                found &= part.columns["mac"][:, at] == byte
            return found

        return starts_with


class Fragment(Kind):
    """``id``, ``id:offset`` or ``id:offset+`` (more follow)."""

    title = "a fragment"
    operators = EQUAL

    def has_value(self, part: Part, context: Context) -> Array | None:
        known: Array = (part.columns["known"] & packet.FRAGMENT) != 0
        return known

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        return any_of([self._same(value) for value in wanted])

    def _same(self, value: Value) -> Matcher:
        number, colon, offset = value.text.partition(":")
        want = values.number(value, {}, number)
        digits = offset.removesuffix("+")
        at = values.number(value, {}, digits, len(number) + 1) if colon else None
        if want > 0xFFFFFFFF or (at or 0) > 0xFFFF:
            raise value.error("not a fragment, such as 4711, 4711:1480 or 4711:1480+")

        def same(part: Part, context: Context) -> Array:
            found: Array = part.columns["frag_id"] == want
            if at is not None:
                more = (part.columns["known"] & packet.MORE) != 0
                found &= part.columns["frag_off"] == at
                found &= more == offset.endswith("+")
            return found

        return same


class Netns(Kind):
    """A network namespace: its name or its inode."""

    title = "a network namespace"
    operators = EQUAL + SEARCH

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        predicate = predicate_of(op, wanted, source)
        inodes = {
            values.number(value, {})
            for value in wanted
            if op == "=" and value.text.isascii() and value.text.isdigit()
        }

        def in_netns(part: Part, context: Context) -> Array:
            # Names are per host: the same inode has another name on another host.
            named = {key for key, name in context.netns.items() if predicate(name)}
            column, hosts = part.columns["netns"], part.columns["host"]
            if op == "~":
                # A namespace without a name is shown by its inode.
                keys = np.unique(hosts.astype(np.uint64) << np.uint64(32) | column).tolist()
                pairs = ((key >> 32, key & 0xFFFFFFFF) for key in keys)
                named.update(
                    pair for pair in pairs if pair not in context.netns and predicate(str(pair[1]))
                )
            found = np.zeros(len(part), bool)
            for inode in inodes:
                if inode <= 0xFFFFFFFF:
                    found |= column == np.uint32(inode)
            for host, inode in named:
                if inode <= 0xFFFFFFFF and host <= 0xFF:
                    found |= (column == np.uint32(inode)) & (hosts == np.uint8(host))
            return found

        return in_netns


class NetnsName(Netns):
    """A network namespace by its name alone: one without a name has no value."""

    def has_value(self, part: Part, context: Context) -> Array | None:
        found = np.zeros(len(part), bool)
        for (host, inode), name in context.netns.items():
            if name and inode <= 0xFFFFFFFF and host <= 0xFF:
                mine = part.columns["host"] == np.uint8(host)
                found |= (part.columns["netns"] == np.uint32(inode)) & mine
        return found

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        predicate = predicate_of(op, wanted, source)

        def named(part: Part, context: Context) -> Array:
            names = {key: name for key, name in context.netns.items() if predicate(name)}
            found = self.has_value(part, replace(context, netns=names))
            return np.zeros(len(part), bool) if found is None else found

        return named


class Host(Kind):
    """The host of a row: its name or its number."""

    title = "a host"
    operators = EQUAL + SEARCH

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        predicate = predicate_of(op, wanted, source)

        def on_host(part: Part, context: Context) -> Array:
            names = [*context.hosts, *map(str, range(len(context.hosts), 256))]
            table = np.array([predicate(name) for name in names[:256]])
            if op == "=" and not table[: len(context.hosts)].any():
                table = np.array([predicate(str(at)) for at in range(256)])
            found: Array = table[part.columns["host"]]
            return found

        return on_host


class TraceId(Number):
    """nftables' number of a packet, hexadecimal, with or without ``0x``."""

    title = "a trace id"
    operators = EQUAL
    maskable = False

    def __init__(self) -> None:
        super().__init__("trace_id", lambda part: part.columns["trace_id"] != 0)

    def interval(self, value: Value) -> values.Interval:
        digits = value.text.lower().removeprefix("0x")
        if not _TRACE_ID.fullmatch(digits):
            raise value.error("not a trace id, up to 8 hexadecimal digits, such as 1f2e3d4c")
        return int(digits, 16), int(digits, 16)


class Path(Kind):
    """Any step of the path: its chain, or ``chain:rulenum``.

    ``chain:?`` is a rule with an unknown number.
    """

    title = "a path"
    operators = EQUAL + SEARCH

    def has_value(self, part: Part, context: Context) -> Array | None:
        known: Array = part.ends > part.begins
        return known

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        chains = NameTable(predicate_of(op, wanted, source))
        exact: list[tuple[NameTable, int]] = []
        for value in wanted if op == "=" else ():
            chain, colon, number = value.text.rpartition(":")
            if colon and chain and (number == "?" or _RULENUM.fullmatch(number)):
                named = Value(chain, True, value.start, value.end)
                wanted_number = 0 if number == "?" else int(number)
                exact.append((NameTable(predicate_of("=", [named], source)), wanted_number))

        def on_path(part: Part, context: Context) -> Array:
            found = np.zeros(len(part), bool)
            if not len(part):
                return found
            first, last = int(part.begins[0]), int(part.ends[-1])
            ids = part.steps["chain"][first:last]
            steps = chains.mask(ids, context)
            for table, number in exact:
                same = part.steps["rulenum"][first:last] == number
                steps |= same & table.mask(ids, context)
            at = np.flatnonzero(steps) + first
            found[np.searchsorted(part.ends, at, "right")] = True
            return found

        return on_path


class RuleText(Kind):
    """The text of the deciding rule, tested once for each rule."""

    title = "a text"
    operators = EQUAL + SEARCH
    skips_unknown = True

    def __init__(self) -> None:
        self._any = _RuleTable(lambda text: True)

    def has_value(self, part: Part, context: Context) -> Array | None:
        return self._any.mask(part, context)

    def matcher(self, op: str, wanted: Sequence[Value], test: Test, source: str) -> Matcher:
        return _RuleTable(predicate_of(op, wanted, source)).mask


# Rules that a query caches.
_CACHED: Final = 1 << 18


class _RuleTable:
    """For each rule, by a hash of what identifies it, whether its text matches."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        self._hash = Hash(6)
        # Names of the store, hashes (ascending), whether each rule matches.  Replaced,
        # never changed: threads may share it.
        self._held: tuple[object, Array, Array] = (None, _NO_KEYS, _NO_KEYS.astype(bool))

    def mask(self, part: Part, context: Context) -> Array:
        """The rows whose deciding rule matches: bool of shape (len(part),)."""
        found = np.zeros(len(part), bool)
        columns = part.columns
        if not context.rulesets:
            return found
        rows = np.flatnonzero(
            (columns["ruleset"] != 0)
            & (columns["chain"] != 0)
            & (columns["match"] != record.MATCH_POLICY)
        )
        if not rows.size:
            return found
        words = [columns[name][rows] for name in ("chain", "rulenum", "table", "netns", "ruleset")]
        kind = columns["tables"][rows].astype(np.uint32) << np.uint32(16)
        kind |= columns["family"][rows].astype(np.uint32) << np.uint32(8) | columns["host"][rows]
        hashes = self._hash.full([*words, kind])
        held, keys, matches = self._held
        if held is not context.names or len(keys) > _CACHED:
            keys, matches = _NO_KEYS, _NO_KEYS.astype(bool)
        at, known = _find(keys, hashes)
        if not known.all():
            missed = np.flatnonzero(~known)
            keys, matches = self._add(part, context, rows[missed], hashes[missed], keys, matches)
            at, known = _find(keys, hashes)
        if len(keys):
            found[rows] = matches[at] & known
        return found

    def _add(
        self, part: Part, context: Context, rows: Array, hashes: Array, keys: Array, matches: Array
    ) -> tuple[Array, Array]:
        """Test the texts of new rules; rules without a text are looked up again next time."""
        fresh, heads = np.unique(hashes, return_index=True)
        texts = [_text_of(part, context, row) for row in rows[heads].tolist()]
        known = [at for at, text in enumerate(texts) if text is not None]
        keys = np.concatenate([keys, fresh[known]])
        matches = np.concatenate([matches, [self._predicate(texts[at] or "") for at in known]])
        order = np.argsort(keys)
        keys, matches = keys[order], matches[order].astype(bool)
        self._held = (context.names, keys, matches)
        return keys, matches


_NO_KEYS: Final = np.zeros(0, np.uint64)


def _find(keys: Array, hashes: Array) -> tuple[Array, Array]:
    """Index of each hash in `keys`, and whether it is there."""
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


def conntrack_versions(tracked: HasValue) -> Callable[[Part], Array]:
    """The IP version by the hook's family; 0 without a conntrack entry."""

    def version(part: Part) -> Array:
        family = part.columns["family"]
        found: Array = np.where(family == 2, np.uint8(4), np.uint8(0))
        found[family == 10] = 6
        found *= tracked(part)
        return found

    return version
