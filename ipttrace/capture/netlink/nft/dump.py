# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of a namespace's nftables ruleset: tables, chains, and the handles of rules.

A snapshot is of one generation.  The texts of rules are read elsewhere (capture.rules).
Must not change anything in the kernel.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.nft.nftrace import may_clear, needs_conntrack, only_verdict
from ipttrace.capture.netlink.nft.rewrites import Rewrite, rewrites
from ipttrace.capture.netlink.nft.wire import (
    NftSocket,
    Refused,
    Request,
    attributes,
    capture_error,
    each_attribute,
)

_GETTABLE: Final = 1
_GETCHAIN: Final = 4
_GETRULE: Final = 7
_GETGEN: Final = 16
_DUMP: Final = 0x300  # NLM_F_DUMP

# Attributes: enum nft_table_attributes, nft_chain_attributes, nft_hook_attributes,
# nft_rule_attributes, nft_gen_attributes.
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _TABLE_OWNER = 1, 2, 4, 7
_CHAIN_TABLE, _CHAIN_HANDLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 2, 3, 4, 5, 7
_CHAIN_COUNTERS, _CHAIN_USERDATA = 8, 12
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2  # enum nft_counter_attributes
_HOOK_NUM, _HOOK_PRIORITY, _HOOK_DEV, _HOOK_DEVS = 1, 2, 3, 4
_DEVICE_NAME: Final = 1  # of enum nft_devices_attributes; 2: how names begin
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 2, 3, 4
_RULE_USERDATA: Final = 7
_GEN_ID: Final = 1
# The attribute with a counter's name; its value follows.
# Names of sets without a name, of which the rule has a part of its text, and xtables' match and
# target of an ipset, of which it has the index: another rule's may be another set.
_NOT_ALL: Final = (b"__set", b"__map", b"set\0", b"SET\0")
_COUNTER: Final = struct.pack("=HH", 12, 1) + b"counter\0"

_DORMANT: Final = 1  # NFT_TABLE_F_DORMANT
_TRIES: Final = 10
_UNSTABLE: Final = "nftables' rules change faster than they can be listed"


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table; one that is deleted and made again has another `handle`."""

    handle: int
    flags: int  # NFT_TABLE_F_*
    owner: int | None  # netlink address of the socket that owns it


Devices = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """A chain; `hook`, `priority` and `policy` (NF_*) are None unless it is a base chain.

    `devices`: where it is hooked, each as the kernel names it: kind (1: a name, 2: how names
    begin) and name.
    """

    hook: int | None
    priority: int | None
    type: str
    policy: int | None
    devices: Devices = ()
    handles: list[int] = field(default_factory=list)  # of the rules, in order
    comment: str | None = None
    handle: int = 0  # of the chain, which keeps it when it is renamed
    # Of each rule all that its text depends on, hashed: `iptables -R` keeps a rule's handle, and
    # rules that are flushed and added again get other ones.
    contents: list[int] = field(default_factory=list)
    # Of each rule the one verdict that it gives, see only_verdict().
    verdicts: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A ruleset: tables by family (NFPROTO_*) and name, chains by family, table and name.

    `blinding`: chains with rules that may set nf_trace to 0; not of dormant tables.
    `tracking`: families of tables with rules for which the kernel turns conntrack on.
    `rewriting`: by table, of its rules that may change packets, by chain and handle.
    """

    genid: int  # the kernel's number of the generation
    tables: dict[tuple[int, str], TableInfo]
    chains: dict[tuple[int, str, str], ChainInfo]
    blinding: set[tuple[int, str, str]] = field(default_factory=set)
    tracking: set[int] = field(default_factory=set)
    rewriting: dict[tuple[int, str], dict[tuple[str, int], Rewrite]] = field(default_factory=dict)


class RuleExpressions(NamedTuple):
    """A rule's expressions: the bytes of NFTA_RULE_EXPRESSIONS."""

    family: int
    table: str
    chain: str
    handle: int
    expressions: bytes


class Dump:
    """Lists the ruleset of the namespace in which it is made.  For one thread at a time."""

    def __init__(self) -> None:
        """Raises CaptureError if the kernel has no nf_tables or refuses to list it."""
        # The newest attempt of `snapshot`, even if the ruleset changed during it: what it
        # has existed, but not all at the same time.
        self.seen: Snapshot | None = None
        self._socket = NftSocket()
        try:
            self.genid()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Closes the socket, which holds the namespace."""
        self._socket.close()

    def genid(self) -> int:
        """The current generation of the ruleset.  Raises CaptureError."""
        for _, found in self._ask(_GETGEN, 0):
            return _number(found, _GEN_ID) or 0
        raise CaptureError("nf_tables does not report the ruleset's generation")

    def snapshot(self) -> Snapshot:
        """The complete ruleset of one generation.

        Raises CaptureError, also if the ruleset changes during every attempt.
        """
        for _ in range(_TRIES):
            before = self.genid()
            snapshot = self.seen = Snapshot(before, self._tables(), self._chains())
            self._add_handles(snapshot)
            if self.genid() == before:
                return snapshot
        raise CaptureError(_UNSTABLE)

    def now(self) -> Snapshot:
        """The ruleset, of several generations perhaps: each rule existed at some time.

        Raises CaptureError.
        """
        snapshot = Snapshot(
            self.genid(), self._tables(interrupted=True), self._chains(interrupted=True)
        )
        self._add_handles(snapshot, interrupted=True)
        return snapshot

    def rules(self, *, interrupted: bool = False) -> list[RuleExpressions]:
        """All rules in order; of one generation if `genid()` is the same before and after.

        `interrupted`: also if rules change meanwhile, when some may be missing or twice.
        Raises CaptureError.
        """
        return [
            RuleExpressions(
                family,
                _text(found, _RULE_TABLE),
                _text(found, _RULE_CHAIN),
                _number(found, _RULE_HANDLE) or 0,
                found.get(_RULE_EXPRESSIONS, b""),
            )
            for family, found in self._ask(_GETRULE, interrupted=interrupted)
        ]

    def policy_counters(self) -> dict[tuple[int, str, str], tuple[int, int]]:
        """Packets and bytes of the chains' policies that the kernel counts, by chain.

        Only of chains that were made with counters: iptables-nft-restore does that.
        Raises CaptureError.
        """
        counted = {}
        for family, found in self._ask(_GETCHAIN, interrupted=True):
            values = attributes(found.get(_CHAIN_COUNTERS, b""))
            packets, octets = _number(values, _COUNTER_PACKETS), _number(values, _COUNTER_BYTES)
            if packets is not None and octets is not None:
                key = (family, _text(found, _CHAIN_TABLE), _text(found, _CHAIN_NAME))
                counted[key] = packets, octets
        return counted

    def _ask(
        self, kind: int, flags: int = _DUMP, *, interrupted: bool = False
    ) -> list[tuple[int, dict[int, bytes]]]:
        try:
            return self._socket.ask(Request(kind, 0, b"", flags), interrupted=interrupted)
        except Refused as refused:
            if refused.errno == errno.EINTR:
                raise CaptureError(_UNSTABLE) from refused
            raise capture_error(refused.errno) from refused

    def _tables(self, *, interrupted: bool = False) -> dict[tuple[int, str], TableInfo]:
        return {
            (family, _text(found, _TABLE_NAME)): TableInfo(
                _number(found, _TABLE_HANDLE) or 0,
                _number(found, _TABLE_FLAGS) or 0,
                _number(found, _TABLE_OWNER),
            )
            for family, found in self._ask(_GETTABLE, interrupted=interrupted)
        }

    def _chains(self, *, interrupted: bool = False) -> dict[tuple[int, str, str], ChainInfo]:
        chains = {}
        for family, found in self._ask(_GETCHAIN, interrupted=interrupted):
            hook = attributes(found.get(_CHAIN_HOOK, b""))
            priority = _number(hook, _HOOK_PRIORITY)
            if priority is not None and priority >= 1 << 31:
                priority -= 1 << 32
            chains[family, _text(found, _CHAIN_TABLE), _text(found, _CHAIN_NAME)] = ChainInfo(
                _number(hook, _HOOK_NUM),
                priority,
                _text(found, _CHAIN_TYPE),
                _number(found, _CHAIN_POLICY),
                _devices(hook),
                comment=_comment(found.get(_CHAIN_USERDATA, b"")),
                handle=_number(found, _CHAIN_HANDLE) or 0,
            )
        return chains

    def _add_handles(self, snapshot: Snapshot, *, interrupted: bool = False) -> None:
        for family, found in self._ask(_GETRULE, interrupted=interrupted):
            key = (family, _text(found, _RULE_TABLE), _text(found, _RULE_CHAIN))
            chain = snapshot.chains.get(key)
            handle = _number(found, _RULE_HANDLE)
            if chain is not None and handle is not None:
                chain.handles.append(handle)
                rule = without_counter(found.get(_RULE_EXPRESSIONS, b""))
                changed = rewrites(found.get(_RULE_EXPRESSIONS, b""), family)
                if changed.hit:
                    snapshot.rewriting.setdefault(key[:2], {})[key[2], handle] = changed
                content: tuple[object, ...] = (rule, found.get(_RULE_USERDATA, b""))
                if any(word in rule for word in _NOT_ALL):
                    info = snapshot.tables.get(key[:2])
                    content = (*content, None if info is None else info.handle, handle)
                chain.contents.append(hash(content))
                chain.verdicts.append(only_verdict(found.get(_RULE_EXPRESSIONS, b"")))
            if family not in snapshot.tracking and needs_conntrack(
                found.get(_RULE_EXPRESSIONS, b"")
            ):
                snapshot.tracking.add(family)
            if may_clear(found.get(_RULE_EXPRESSIONS, b"")):
                table = snapshot.tables.get(key[:2])
                if table is not None and not table.flags & _DORMANT:
                    snapshot.blinding.add(key)


def without_counter(expressions: bytes) -> bytes:
    """NFTA_RULE_EXPRESSIONS without the first counter, whose value changes with each packet."""
    at = expressions.find(_COUNTER)
    if at < 4:
        return expressions
    (length,) = struct.unpack_from("=H", expressions, at - 4)
    return expressions[: at - 4] + b"counter" + expressions[at - 4 + length :]


def _devices(hook: dict[int, bytes]) -> Devices:
    if name := hook.get(_HOOK_DEV, b"").rstrip(b"\0"):
        return ((_DEVICE_NAME, name),)
    listed = each_attribute(hook.get(_HOOK_DEVS, b""))
    return tuple((kind, name.rstrip(b"\0")) for kind, name in listed)


def _number(values: dict[int, bytes], kind: int) -> int | None:
    """A big-endian number of four or eight bytes, else None."""
    value = values.get(kind, b"")
    if len(value) == 4:
        return int(struct.unpack(">I", value)[0])
    return int(struct.unpack(">Q", value)[0]) if len(value) == 8 else None


def _text(values: dict[int, bytes], kind: int) -> str:
    """A name, empty if there is none; bytes that are not UTF-8 become surrogates."""
    return values.get(kind, b"").split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _comment(userdata: bytes) -> str | None:
    """The comment in the data that nft stores with a chain: (u8 type, u8 length, value)*."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at : at + 2]
        if kind == 0:  # NFTNL_UDATA_CHAIN_COMMENT
            return _text({kind: userdata[at + 2 : at + 2 + length]}, kind)
        at += 2 + length
    return None
