# SPDX-License-Identifier: GPL-2.0-only
"""The entries of legacy tables as the kernel returns them, cut into chains and rules.

Reading them costs a fraction of what iptables-save costs, so that they can be compared often;
the texts of rules are not in them (capture/legacy_texts.py).  Must not create a table:
reading one that does not exist would.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ipttrace.netfilter import HOOKS
from ipttrace.rule_words import Target

VERSIONS: Final = (4, 6)  # of IP

# IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; IP6T_SO_* have the same numbers.
_GET_INFO: Final = 64
_GET_ENTRIES: Final = 65
# struct ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size
_INFO: Final = struct.Struct("=32sI5I5III")
_NAME: Final = 32
_ENTRIES_HEAD: Final = 40  # struct ipt_get_entries: name, size, padding
_LEVELS: Final = {4: (socket.AF_INET, socket.SOL_IP), 6: (socket.AF_INET6, 41)}
_LARGEST: Final = 64 << 20
_TRIES: Final = 3


class _Layout(NamedTuple):
    """Offsets in struct ipt_entry or ip6t_entry, of 64-bit kernels.

    `offsets`: of the offsets of the target and of the next entry (u16 each); `changing`: of
    `comefrom` (by which hooks the entry is reached) and the counters, up to the end, `size`;
    `flags`, and of them the bit `goto`.
    """

    offsets: int
    changing: int
    size: int
    flags: int
    goto: int


# linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h
_LAYOUTS: Final = {4: _Layout(88, 92, 112, 82, 2), 6: _Layout(140, 144, 168, 131, 4)}
_OFFSET: Final = struct.Struct("=H")
_WORD: Final = 4  # bytes, to which all of these are aligned

# struct xt_entry_target: size (u16), name (29 bytes), revision (u8); then of a standard
# target its verdict (int), of ERROR a name (30 bytes).
_TARGET_NAME: Final = 2
_TARGET_HEAD: Final = 32
_VERDICT: Final = struct.Struct("=i")
_ERROR: Final = b"ERROR\0"
_ERROR_NAME: Final = 30
# -NF_* - 1, and XT_RETURN (linux/netfilter/x_tables.h)
_STANDARD: Final = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
# Rules whose text has the name of a set, of which the entry has only the index.
_SETS: Final = (b"\0set\0", b"\0SET\0")

_libc = ctypes.CDLL(None, use_errno=True)

Array = npt.NDArray[Any]


class Chain:
    """A chain: its policy, None unless it is a base chain, and its rules in order.

    `contents`: of each rule a hash of all that its text depends on, except the names of sets;
    `sets`: the contents of rules that name sets, and `targets`: the names of the targets that
    are no chains, both of all rules in the table.  Chains are equal if their rules are.
    """

    __slots__ = ("_blob", "_first", "contents", "policy", "sets", "targets")

    def __init__(
        self,
        policy: str | None,
        contents: tuple[int, ...],
        sets: frozenset[int] = frozenset(),
        targets: frozenset[str] = frozenset(),
        where: tuple[Blob, int] | None = None,
    ) -> None:
        """`where`: the entries, and the index of the first rule's."""
        self.policy = policy
        self.contents = contents
        self.sets = sets
        self.targets = targets
        self._blob: Blob | None = None if where is None else where[0]
        self._first = 0 if where is None else where[1]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Chain)
            and self.policy == other.policy
            and self.contents == other.contents
        )

    __hash__ = None  # type: ignore[assignment]

    def target(self, number: int) -> Target | None:
        """What the rule `number`, from 1 on, does; None if it only counts packets."""
        return None if self._blob is None else self._blob.target(self._first + number - 1)


Chains = dict[str, Chain]
"""The chains of a table, by name."""


class Blob:
    """A table's entries, uint8 (n,), what differs in no rule zeroed."""

    __slots__ = ("_chains", "_family", "_names", "_parsed", "data", "info", "starts")

    def __init__(self, data: Array, starts: Array, info: bytes, family: int) -> None:
        """`starts`: where each entry begins, int64 (m,); `info`: struct ipt_getinfo."""
        self.data = data
        self.starts = starts
        self.info = info
        self._family = family
        self._names: dict[int, str] = {}  # of user-defined chains, by the first rule's offset
        self._chains: Chains | None = None
        self._parsed = False

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Blob)
            and self.info == other.info
            and np.array_equal(self.data, other.data)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def chains(self) -> Chains | None:
        """The chains; None if the entries are not as libiptc makes them."""
        if not self._parsed:
            self._parsed = True
            self._chains = self._parse()
        return self._chains

    def target(self, index: int) -> Target | None:
        """The target of the entry `index`; None if it has none."""
        layout = _LAYOUTS[self._family]
        at, end = int(self.starts[index]), int(self.starts[index + 1])
        entry = self.data[at:end].tobytes()
        (offset,) = _OFFSET.unpack_from(entry, layout.offsets)
        head = offset + _TARGET_HEAD
        if entry[offset + _TARGET_NAME]:
            return Target("-j", _name(entry[offset + _TARGET_NAME : head - 1]))
        (verdict,) = _VERDICT.unpack_from(entry, head)
        if verdict == end:
            return None
        if verdict < 0:
            return Target("-j", _STANDARD.get(verdict, ""))
        goto = entry[layout.flags] & layout.goto
        return Target("-g" if goto else "-j", self._names.get(verdict, ""))

    def _parse(self) -> Chains | None:
        layout = _LAYOUTS[self._family]
        starts, size = self.starts, len(self.data)
        if not len(starts):
            return None
        ends = np.append(starts[1:], size)
        offsets = self.data[starts + layout.offsets].astype(np.int64)
        offsets |= self.data[starts + layout.offsets + 1].astype(np.int64) << 8
        targets = starts + offsets
        if (offsets < layout.size).any() or (offsets % _WORD).any():
            return None
        if (targets + _TARGET_HEAD + _VERDICT.size > ends).any():
            return None
        errors = np.ones(len(starts), bool)
        for at, letter in enumerate(_ERROR):
            errors &= self.data[targets + _TARGET_NAME + at] == letter
        heads = np.flatnonzero(errors).tolist()
        if not heads or heads[-1] != len(starts) - 1:
            return None
        raw = self.data.tobytes()
        spans = []  # of each chain: its name, is it a base chain, its entries
        for at, after in pairwise(heads):
            head = int(targets[at]) + _TARGET_HEAD
            name = _name(raw[head : min(head + _ERROR_NAME, int(ends[at]))])
            self._names[int(ends[at])] = name
            spans.append((name, False, at + 1, after))
        base = self._base(heads[0])
        if base is None:
            return None
        spans = base + spans
        if len({one[0] for one in spans}) < len(spans) or any(one[2] >= one[3] for one in spans):
            return None
        return self._found(spans, raw, ends, targets)

    def _base(self, count: int) -> list[tuple[str, bool, int, int]] | None:
        """The base chains, which are the first `count` entries."""
        _, valid, *rest = _INFO.unpack(self.info)
        begins = {rest[hook]: HOOKS[hook] for hook in range(5) if valid >> hook & 1}
        indices = {int(at): index for index, at in enumerate(self.starts[:count])}
        if len(begins) != valid.bit_count() or not begins.keys() <= indices.keys():
            return None
        order = [indices[at] for at in sorted(begins)]
        if order[:1] != [0]:
            return None
        names = [begins[at] for at in sorted(begins)]
        return [
            (name, True, at, after)
            for name, at, after in zip(names, order, [*order[1:], count], strict=True)
        ]

    def _found(
        self, spans: list[tuple[str, bool, int, int]], raw: bytes, ends: Array, targets: Array
    ) -> Chains:
        plain = self._without_offsets(ends, targets)
        where = list(zip(self.starts.tolist(), ends.tolist(), strict=True))
        contents = [hash(plain[at:end]) for at, end in where]
        sets = frozenset[int]()
        if any(word in raw for word in _SETS):
            sets = frozenset(
                content
                for content, (at, end) in zip(contents, where, strict=True)
                if any(word in raw[at:end] for word in _SETS)
            )
        named = targets[self.data[targets + _TARGET_NAME] != 0].tolist()
        names = {raw[at + _TARGET_NAME : at + _TARGET_HEAD - 1] for at in named}
        kinds = frozenset(map(_name, names)) - {"ERROR"}
        found = {}
        for name, is_base, first, last in spans:
            policy = self.target(last - 1) if is_base else None
            found[name] = Chain(
                None if policy is None else policy.name,
                tuple(contents[first : last - 1]),
                sets,
                kinds,
                (self, first),
            )
        return found

    def _without_offsets(self, ends: Array, targets: Array) -> bytes:
        """The entries, each jump's offset, which changes with the chains before it, replaced.

        By a hash of the chain's name; a verdict that goes on with the next rule by zeros.
        """
        verdicts = targets + _TARGET_HEAD
        standard = np.flatnonzero(
            (self.data[targets + _TARGET_NAME] == 0) & (verdicts + 2 * _WORD <= ends)
        )
        verdicts = verdicts[standard]
        words = self.data.view(np.uint32).copy()
        values = words[verdicts // _WORD].view(np.int32).astype(np.int64)
        to = np.array(sorted(self._names), np.int64)
        hashes = np.array([hash(self._names[one]) for one in to.tolist()], np.int64)
        new = values.copy()
        if len(to):
            at = np.minimum(np.searchsorted(to, values), len(to) - 1)
            new = np.where(to[at] == values, hashes[at], values)
        new[values == ends[standard]] = 0
        words[verdicts // _WORD] = (new & 0xFFFFFFFF).astype(np.uint32)
        words[verdicts // _WORD + 1] = (new >> 32 & 0xFFFFFFFF).astype(np.uint32)
        return words.tobytes()


NONE: Final = Blob(np.zeros(0, np.uint8), np.zeros(0, np.int64), b"", 4)
"""A table that cannot be read."""


class Sockets:
    """Sockets by which the tables of one namespace are read, from any thread."""

    def __init__(self) -> None:
        """Of the calling thread's namespace.  Raises OSError if it has neither IP version."""
        self._sockets: dict[int, socket.socket] = {}
        for family in VERSIONS:
            with contextlib.suppress(OSError):
                self._sockets[family] = socket.socket(
                    _LEVELS[family][0], socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
                )
        if not self._sockets:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    @property
    def families(self) -> list[int]:
        """The IP versions whose tables can be read."""
        return list(self._sockets)

    def close(self) -> None:
        """Closes the sockets, which hold the namespace."""
        for sock in self._sockets.values():
            sock.close()

    def read(self, family: int, table: str, before: Blob = NONE) -> Blob:
        """The entries of a table that exists; NONE if they cannot be read.

        `before`: entries that were read earlier, returned if nothing but counters differs.
        """
        raw = self.fetch(family, table)
        return NONE if raw is None else parse(raw[1], family, raw[0], before)

    def fetch(self, family: int, table: str) -> tuple[bytes, Array] | None:
        """What `parse` takes, at once, of a table that exists: struct ipt_getinfo, entries.

        None if they cannot be read.
        """
        if family not in self._sockets:
            return None
        level = _LEVELS[family][1]
        fd = self._sockets[family].fileno()
        name = table.encode()[: _NAME - 1]
        for _ in range(_TRIES):
            info = self._info(fd, level, name)
            if info is None:
                return None
            size = _INFO.unpack(info)[-1]
            if size > _LARGEST:
                return None
            # The kernel leaves out what follows the ends of names.
            room = np.zeros(_ENTRIES_HEAD + size, np.uint8)
            room[:_ENTRIES_HEAD] = np.frombuffer(struct.pack("=32sI4x", name, size), np.uint8)
            if (
                _get(fd, level, _GET_ENTRIES, room.ctypes.data, len(room))
                and self._info(fd, level, name) == info
            ):
                return info, room[_ENTRIES_HEAD:]
        return None

    def _info(self, fd: int, level: int, name: bytes) -> bytes | None:
        info = ctypes.create_string_buffer(_INFO.pack(name, *[0] * 13), _INFO.size)
        return info.raw if _get(fd, level, _GET_INFO, info, _INFO.size) else None


def _get(fd: int, level: int, option: int, buffer: Any, size: int) -> bool:
    """getsockopt(2) with a buffer that is also read, which Python's socket does not offer."""
    length = ctypes.c_uint32(size)
    pointer = ctypes.c_void_p(buffer) if isinstance(buffer, int) else buffer
    return bool(_libc.getsockopt(fd, level, option, pointer, ctypes.byref(length)) == 0)


def parse(data: Array, family: int, info: bytes, before: Blob = NONE) -> Blob:
    """The entries in `data`, uint8 (n,), which is modified.

    `info`: struct ipt_getinfo of the table; `before`: as in Sockets.read.
    """
    if len(data) == len(before.data) and info == before.info:
        # Counters are where they were if the rest, which has the entries' lengths, is the same.
        same = data.copy()
        _clear(same, before.starts, family)
        if np.array_equal(same, before.data):
            return before
    layout = _LAYOUTS[family]
    starts = []
    at, size, next_at = 0, len(data), layout.offsets + 2
    raw = data.tobytes()
    while at + layout.size <= size and not at % _WORD:
        starts.append(at)
        after = raw[at + next_at] | raw[at + next_at + 1] << 8
        if after < layout.size:
            break
        at += after
    if at != size or size % _WORD:
        return Blob(data, np.zeros(0, np.int64), info, family)
    found = np.array(starts, np.int64)
    _clear(data, found, family)
    return Blob(data, found, info, family)


def _clear(data: Array, starts: Array, family: int) -> None:
    """Zeroes what differs in no rule in entries at `starts`, int64 (n,): counters, comefrom."""
    layout = _LAYOUTS[family]
    within = np.arange(layout.changing // _WORD, layout.size // _WORD)
    data.view(np.uint32)[starts[:, None] // _WORD + within] = 0


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
