# SPDX-License-Identifier: GPL-2.0-only
"""All rules of a host in every generation that was seen, from RULES and COUNTERS frames.

A generation is a number that increases with every change of any table of a host; each
row has that of its packet.  A RULES frame is one of

``{"netns", "family", "table", "backend", "since", "mono", "chains", "upto", "unknown",
"handles"}``
    the rules of a table from generation `since` on, until its next change; `family` is
    4 or 6, or for an nftables table "ip", "ip6", "inet", "arp", "bridge" or "netdev";
    `chains` is ``{"INPUT": {"policy": "DROP" or null, "rules": ["-p tcp -j ACCEPT", …]}}``;
    `unknown`, if there is any, has the numbers of the rules whose texts are not known:
    ``{"INPUT": [2, 3]}``; `handles`, likewise, what nftables calls each rule, in order
the same without ``chains``
    the table changed at `since`; its rules are unknown, or follow later
``{"netns", "family", "table", "gone": true}``
    the table no longer exists, perhaps with its namespace
``{"since", "upto"}``
    any table may have changed at `since`
``{"upto"}``
    no change

Legacy tables and those of nftables count generations separately: the last two frames
are about nftables if they have ``"of": "nft"``.

Every change up to generation `upto` has been reported; rules of later generations are
unknown.  A COUNTERS frame is ``{"netns", "family", "table", "mono", "since", "chains":
{"INPUT": {"policy": [packets, bytes] or null, "rules": [[packets, bytes], …]}}}``.

Frames are untrusted: they are checked, and memory is bounded.  Readers may be in other
threads than the one that feeds.  Must not do I/O.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ipttrace.trace.arrays import Array
from ipttrace.trace.rules.counters import CounterPair
from ipttrace.trace.rules.families import FAMILIES, NFT
from ipttrace.trace.rules.frames import frame_key
from ipttrace.trace.rules.timeline import Table, Timeline

_TEXT_ROOM: Final = 64 << 20  # bytes


class Rulesets:
    """The rules of a host: a timeline of legacy tables and one of nftables'."""

    def __init__(self, room: int = _TEXT_ROOM) -> None:
        """`room`: bytes that the texts of each timeline may take."""
        self._legacy, self._nft = Timeline(room), Timeline(room)

    @property
    def version(self) -> int:
        """Increases whenever a text may have changed."""
        return self._legacy.version + self._nft.version

    @property
    def counted(self) -> int:
        """Increases with each COUNTERS frame."""
        return self._legacy.counted + self._nft.counted

    @property
    def size(self) -> int:
        """Bytes that are held, estimated."""
        return self._legacy.size + self._nft.size

    def _of(self, family: int) -> Timeline:
        return self._nft if family > NFT else self._legacy

    def begin(self) -> None:
        """Begins another stream, which counts generations anew; none of its rules is known yet."""
        self._legacy.begin()
        self._nft.begin()

    def renumber(self, generations: Array, nft: Array | None = None) -> Array:
        """Returns the stream's generations, uint32 (n,), unique over all streams; 0 stays 0.

        `nft`: bool (n,): does the row belong to a table of nftables?
        """
        if nft is None or not nft.any():
            return self._legacy.renumber(generations)
        numbers = np.zeros(len(generations), np.uint32)
        numbers[nft] = self._nft.renumber(generations[nft])
        numbers[~nft] = self._legacy.renumber(generations[~nft])
        return numbers

    def feed(self, rules: dict[str, Any]) -> None:
        """Adds a RULES frame.  Raises StreamError, one line, if it is malformed."""
        family = rules.get("family")
        named = isinstance(family, str) and family in FAMILIES
        (self._nft if named or rules.get("of") == "nft" else self._legacy).feed(rules)

    def feed_counters(self, counters: dict[str, Any]) -> None:
        """Adds a COUNTERS frame.  Raises StreamError, one line, if it is malformed."""
        self._of(frame_key(counters, "counters")[1]).feed_counters(counters)

    def text(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> str | None:
        """Returns a rule's text in a row's generation, clean; None if unknown.

        At most 4,096 characters.  A policy or the end of a chain has no text.
        `family`: see `families`.
        """
        return self._of(family).text((netns, family, table), chain, rulenum, generation)

    def handle(
        self, netns: int, family: int, table: str, chain: str, rulenum: int, generation: int
    ) -> int | None:
        """Returns the handle of a rule of nftables in a row's generation; None if unknown."""
        return self._of(family).handle((netns, family, table), chain, rulenum, generation)

    def tables(self, netns: int) -> list[Table]:
        """Returns the newest known rules of each table, by family, as packets meet them."""
        return self._legacy.tables(netns) + self._nft.tables(netns)

    def namespaces(self) -> list[int]:
        """Returns the inodes of the namespaces that have tables here."""
        return sorted({*self._legacy.namespaces(), *self._nft.namespaces()})

    def counters(self, netns: int, family: int, table: str) -> CounterPair | None:
        """Returns the newest counters, and those before if they belong to the same rules."""
        return self._of(family).counters((netns, family, table))
