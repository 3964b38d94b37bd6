# SPDX-License-Identifier: GPL-2.0-only
"""The text of a ruleset of nftables: in tables, without what a copy cannot have.

Must not do I/O.
"""

from __future__ import annotations

import re
from typing import Final

from ipttrace.text import clean
from ipttrace.whatif.errors import WhatIfError

_TABLE: Final = re.compile(r"^table (\w+) (\S+) \{", re.MULTILINE)
_INCLUDE: Final = re.compile(r"(^|[;{}])\s*include\b")
_OWNER: Final = re.compile(r"^(\s*flags )[a-z, ]*\b(owner|persist)\b[a-z, ]*;?$", re.MULTILINE)
_QUOTED: Final = re.compile(r'"[^"\n]*"')


def check_nft(text: str, source: str) -> None:
    """Raises WhatIfError if the text includes files."""
    for number, line in enumerate(text.splitlines(), 1):
        if "include" in line and _INCLUDE.search(_QUOTED.sub('""', line.partition("#")[0])):
            raise WhatIfError(
                f"{source}: line {number}: include is not followed: give the included file "
                "with --rules too, or the output of nft list ruleset"
            )
    if deep := _deepest(text):
        raise WhatIfError(f"{source}: line {deep}: braces nested deeper than 32")


def _deepest(text: str) -> int:
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        depth += line.count("{") - line.count("}")
        if depth > 32:
            return number
    return 0


def tables(text: str) -> list[tuple[str, str, str]]:
    """Returns family, name and text of each table that ``nft list ruleset`` printed."""
    starts = [(found[1], found[2], found.start()) for found in _TABLE.finditer(text)]
    ends = [*(start for _, _, start in starts[1:]), len(text)][: len(starts)]
    return [
        (family, clean(name, 200), text[start:end])
        for (family, name, start), end in zip(starts, ends, strict=True)
    ]


def without_owner(text: str) -> str:
    """Returns the text without the flags that would end a table with the nft that loads it."""
    return _OWNER.sub("", text)
