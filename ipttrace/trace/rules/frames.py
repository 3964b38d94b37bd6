# SPDX-License-Identifier: GPL-2.0-only
"""RULES and COUNTERS frames, checked: their contents, or StreamError.  Must not do I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.rules.families import FAMILIES

U32: Final = 1 << 32
U64: Final = 1 << 64
_NAME_LIMIT: Final = 1024  # 255 bytes, escaped

Key = tuple[int, int, str]
"""Inode of the namespace, family (see `families`), table."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its policy, None unless it is a base chain, and its rules in order.

    `unknown`: numbers of the rules whose texts are not known; they are empty in `rules`.
    `handles`: what nftables calls the rules, in order; empty if that is not known.
    """

    policy: str | None
    rules: tuple[str, ...]
    unknown: frozenset[int] = frozenset()
    handles: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Counted:
    """Packets and bytes of a chain's policy and of its rules, uint64 (n, 2).

    `known`: bool (n,), whether a rule counts.
    """

    policy: tuple[int, int] | None
    rules: Array
    known: Array


def frame_number(frame: dict[str, Any], name: str, limit: int, what: str) -> int:
    """Returns the integer `name` of the frame, at least 0 and below `limit`."""
    value = frame.get(name)
    if type(value) is int and 0 <= value < limit:
        return value
    raise StreamError(f"malformed {what} in the stream: {name}")


def frame_key(frame: dict[str, Any], what: str) -> Key:
    """Returns the table that the frame is about."""
    netns, family = frame_number(frame, "netns", U32, what), frame.get("family")
    table = frame.get("table")
    if type(family) not in (int, str) or family not in FAMILIES:
        raise StreamError(f"malformed {what} in the stream: family")
    if not isinstance(table, str) or len(table) > _NAME_LIMIT:
        raise StreamError(f"malformed {what} in the stream: table")
    return netns, FAMILIES[family], clean(table)


def frame_name(name: str, what: str) -> str:
    """Returns a chain's name, clean."""
    if len(name) > _NAME_LIMIT:
        raise StreamError(f"malformed {what} in the stream: chains")
    return clean(name)


def frame_chains(value: object, unknown: object = None, handles: object = None) -> dict[str, Chain]:
    """Returns the chains of a RULES frame by clean name; rules are not cleaned.

    `unknown`, `handles`: as in the frame, None if it has none.
    """
    if not isinstance(value, dict):
        raise StreamError("malformed rules in the stream: chains")
    if not isinstance(unknown, dict | None):
        raise StreamError("malformed rules in the stream: unknown")
    if not isinstance(handles, dict | None):
        raise StreamError("malformed rules in the stream: handles")
    found: dict[str, Chain] = {}
    for name, chain in value.items():
        shown = frame_name(name, "rules")
        if not isinstance(chain, dict):
            raise StreamError("malformed rules in the stream: chains")
        policy, rules = chain.get("policy"), chain.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
            raise StreamError("malformed rules in the stream: rules of a chain")
        if policy is not None and not isinstance(policy, str):
            raise StreamError("malformed rules in the stream: policy")
        numbers = _numbers({} if unknown is None else unknown, name, "unknown")
        called = _numbers({} if handles is None else handles, name, "handles")
        if called and len(called) != len(rules):
            raise StreamError("malformed rules in the stream: handles")
        # Two names that look the same once cleaned: a packet could have been in either.
        ambiguous = shown in found
        policy = None if policy is None else clean(policy, 32)
        found[shown] = (
            Chain(None, ())
            if ambiguous
            else Chain(policy, tuple(rules), frozenset(numbers), tuple(called))
        )
    return found


def _numbers(of: dict[Any, Any], name: str, what: str) -> list[int]:
    """Returns the numbers that a frame has of a chain."""
    numbers = of.get(name, [])
    if not isinstance(numbers, list) or not all(
        type(one) is int and 0 <= one < U64 for one in numbers
    ):
        raise StreamError(f"malformed rules in the stream: {what}")
    return numbers


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        packets, size = value
        if type(packets) is int and type(size) is int and packets >= 0 and size >= 0:
            return min(packets, U64 - 1), min(size, U64 - 1)
    raise StreamError("malformed counters in the stream")


def frame_counted(value: object) -> Counted:
    """Returns a chain of a COUNTERS frame."""
    if not isinstance(value, dict) or not isinstance(value.get("rules"), list):
        raise StreamError("malformed counters in the stream")
    policy, rules = value.get("policy"), value["rules"]
    known = np.array([pair is not None for pair in rules], bool)
    pairs = rules if known.all() else [(0, 0) if pair is None else pair for pair in rules]
    return Counted(None if policy is None else _pair(policy), _pairs(pairs), known)


def _pairs(value: list[Any]) -> Array:
    """Returns uint64 (n, 2)."""
    try:
        found = np.array(value)
    except ValueError:  # lists of different lengths
        found = np.zeros(0)
    if found.dtype.kind == "i" and found.shape == (len(value), 2) and (found >= 0).all():
        return found.astype(np.uint64)
    # Beyond 63 bits, or malformed: one by one.
    return np.array([_pair(pair) for pair in value], np.uint64).reshape(-1, 2)
