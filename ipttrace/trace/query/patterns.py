# SPDX-License-Identifier: GPL-2.0-only
"""Regular expressions that may be run on names that an attacker chose.

Python's `re` goes back and tries again, and some patterns do so for years.  A
pattern is refused where the number of ways to match a text of 128 characters
could be more than three ``*`` in a row give; and patterns are only ever run on
texts that differ, never on rows.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from re import _constants as op
from re import _parser as sre
from typing import Any, Final

from ipttrace.trace.query.error import QueryError
from ipttrace.trace.query.tree import Value, source_offset

Predicate = Callable[[str], bool]

MAX_PATTERN: Final = 1000
# Names of the kernel are at most 31 bytes, each of them four characters when escaped.
_TEXT: Final = 128
_MOST: Final = (_TEXT + 1) ** 3
_FOREVER: Final = 1 << 62

_REPEATS: Final = {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}


def pattern(value: Value, source: str) -> Predicate:
    """A search for `value` in a text, in upper or lower case.

    `source`: the query, for the place of an error.  Raises QueryError.
    """
    if len(value.text) > MAX_PATTERN:
        raise value.wrong(f"the pattern is longer than {MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways = _ways(sre.parse(value.text, re.IGNORECASE))
            if ways > _MOST:
                raise value.wrong(
                    "this pattern could take forever: repeat no group with | or a repeat in it, "
                    "and use at most three *"
                )
            search = re.compile(value.text, re.IGNORECASE).search
    except re.error as error:
        at = error.pos or 0
        if value.quoted:
            at = source_offset(source[value.start : value.end], at)
        at = min(value.start + at, max(value.end - 1, value.start))
        raise QueryError(f"not a regular expression: {error.msg}", at) from None
    except (OverflowError, RecursionError):
        raise value.wrong("not a regular expression that can be used: too big") from None
    return lambda text: search(text) is not None


def _ways(items: Any) -> int:
    """In how many ways a text could be matched, at most, before it is given up."""
    ways: int = 1
    for item in items:
        ways = min(ways * _ways_of(*item), _FOREVER)
    return ways


def _ways_of(kind: Any, of: Any) -> int:
    if kind in _REPEATS:
        least, most, body = of
        most = int(min(most, _TEXT))
        inside = _ways(body)
        if inside == 1:
            return int(most - min(int(least), most) + 1)
        return _FOREVER if most > 62 else int(min(inside**most, _FOREVER))
    if kind is op.SUBPATTERN:
        return _ways(of[-1])
    if kind is op.BRANCH:
        return sum(map(_ways, of[1]))
    if kind in (op.ASSERT, op.ASSERT_NOT):
        return _ways(of[1])
    if kind is op.ATOMIC_GROUP:
        return _ways(of)
    if kind is op.GROUPREF_EXISTS:
        return sum(_ways(some) for some in of[1:] if some)
    return 1
