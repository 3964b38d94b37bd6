# SPDX-License-Identifier: GPL-2.0-only
"""Changes of a copy's rules, as commands that people type; no shell reads them.

Must not run anything outside of the copy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from ipttrace.text import clean
from ipttrace.whatif.copy.running import Copy
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot.files import runs_programs
from ipttrace.whatif.snapshot.model import Snapshot
from ipttrace.whatif.snapshot.nft import check_nft

_MOST: Final = 65536  # characters
_IPTABLES: Final = ("iptables", "ip6tables")
_KINDS: Final = tuple(f"{name}-{kind}" for name in _IPTABLES for kind in ("legacy", "nft"))
PROGRAMS: Final = (*_IPTABLES, *_KINDS, "nft", "ipset", "ip")
# Of the others: the words that may follow first, and the options before and behind them.
_FIRST: Final = {
    "ipset": ("add", "create", "del", "destroy", "flush", "rename", "swap"),
    "ip": ("addr", "address", "link", "neigh", "neighbour", "route", "rule"),
}
_OPTIONS: Final = {"ipset": ("-exist",), "ip": ("-4", "-6"), "nft": ()}
_NUMBER: Final = re.compile(r"-[0-9]+;?")


def parse(text: str) -> list[str]:
    """Returns the words of a command.  Raises WhatIfError if it is none that may be used."""
    shown = clean(text, 80)
    if len(text) > _MOST:
        raise WhatIfError(f"{shown}: too long")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise WhatIfError(f"{shown}: {str(error).lower()}") from None
    if words[:1] == ["sudo"]:
        words = words[1:]
    if not words or words[0] not in PROGRAMS:
        known = ", ".join((*_IPTABLES, "nft", "ipset", "ip"))
        raise WhatIfError(f"{shown}: begin with one of {known}")
    for refused in _refused(words[0], words[1:]):
        raise WhatIfError(f"{shown}: {clean(refused, 30)} is not possible here")
    if words[0] == "nft":
        check_nft(" ".join(words[1:]), shown)
    return words


def _refused(program: str, words: Sequence[str]) -> Iterator[str]:
    """Yields the words of a command that would read files, or lead elsewhere."""
    if program not in _OPTIONS:
        pairs = zip(["", *words], words, strict=False)
        yield from (word for before, word in pairs if runs_programs(word, before))
        return
    options = _OPTIONS[program]
    others = [word for word in words if word not in options]
    yield from (word for word in others if word[:1] == "-" and not _NUMBER.fullmatch(word))
    first = _FIRST.get(program)
    if first and others[:1] and others[0] not in first:
        yield others[0]


def carry_out(copy: Copy, commands: Sequence[Sequence[str]]) -> None:
    """Runs commands, from `parse`, in the copy.  Raises WhatIfError at the first that fails."""
    for words in commands:
        program = words[0]
        if program in _IPTABLES:
            program = f"{program}-{_backend(copy.snapshot)}"
        done = copy.run([program, *words[1:]])
        if done.status:
            shown = clean(shlex.join(words), 80)
            raise WhatIfError(f"{shown}: {clean(done.reason, 200)}")


def _backend(snapshot: Snapshot) -> str:
    """What iptables changes: legacy tables, unless the rules have only those of iptables-nft."""
    kinds = {one.kind for one in snapshot.rulesets}
    nft = any(kind.endswith("-nft") for kind in kinds)
    return "nft" if nft and not any(kind.endswith("-legacy") for kind in kinds) else "legacy"
