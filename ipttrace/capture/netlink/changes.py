# SPDX-License-Identifier: GPL-2.0-only
"""Changes of rules, as the engine hands them to the watch that reads the rules' texts.

Must not import capture.rules, and must not do I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from ipttrace.capture.legacy_texts import TextTable
from ipttrace.capture.netlink.nft.dump import Snapshot


class NftChange(NamedTuple):
    """A namespace has another nftables ruleset: generation `number` of the stream.

    `path` leads to the namespace `inode`.  `snapshot`: None if it could not be read, or
    if the namespace is gone.
    """

    path: str
    inode: int
    snapshot: Snapshot | None
    number: int


class LegacyChange(NamedTuple):
    """A namespace has other legacy tables, or more of their texts are known.

    `tables`: by IP version (4, 6) and name; else as NftChange.
    """

    path: str
    inode: int
    tables: dict[tuple[int, str], TextTable]
    number: int


RuleChange = NftChange | LegacyChange
