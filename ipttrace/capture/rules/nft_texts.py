# SPDX-License-Identifier: GPL-2.0-only
"""The texts of nftables' rules, as the tool that made them prints them.

Native rules are printed by `nft list ruleset`; the tables of iptables-nft and
ip6tables-nft by their own save commands, for each rule that these print completely.
A rule gets a text only if the kernel's list and the tool's agree on it.  Runs
commands in the calling thread's namespace.  Must not change anything.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.nft.dump import ChainInfo, Dump, Snapshot
from ipttrace.capture.rules import nft_listing
from ipttrace.capture.rules.frames import Backend
from ipttrace.capture.rules.nft_expressions import counter, iptables_prints_all
from ipttrace.netfilter import NFPROTO_IPV4, NFPROTO_IPV6

NFT: Final = "nft"
IPTABLES: Final = "iptables-nft"

_SAVE: Final = {NFPROTO_IPV4: "iptables-nft-save", NFPROTO_IPV6: "ip6tables-nft-save"}
# Hook and priority of each chain that iptables creates: a table with others is not its own.
_FILTER: Final = {"INPUT": 1, "FORWARD": 2, "OUTPUT": 3}
_ALL: Final = {"PREROUTING": 0, **_FILTER, "POSTROUTING": 4}
_BUILT_IN: Final = {
    "raw": {"PREROUTING": (0, -300), "OUTPUT": (3, -300)},
    "mangle": {name: (hook, -150) for name, hook in _ALL.items()},
    "nat": {"PREROUTING": (0, -100), "INPUT": (1, 100), "OUTPUT": (3, -100),
            "POSTROUTING": (4, 100)},
    "filter": {name: (hook, 0) for name, hook in _FILTER.items()},
    # Not NF_IP_PRI_SECURITY, which is 50: iptables-nft has a number of its own.
    "security": {name: (hook, 150) for name, hook in _FILTER.items()},
}  # fmt: skip
POLICIES: Final = {0: "drop", 1: "accept"}
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OWN: Final = "ipttrace-"  # names of the tables that flip, of any ipttrace process
_MISSING: Final = "nft is missing (apt install nftables): nftables' rules have no texts"
_NO_ELEMENTS: Final = re.compile(rb"\{ *\}")

_Key = tuple[int, str]
"""NFPROTO_* and name of a table."""

_Chain = tuple[int, str, str]
"""NFPROTO_*, name of a table, name of a chain."""


class Changed(Exception):
    """The ruleset differs from the snapshot by now."""


@dataclass(frozen=True, slots=True)
class ChainText:
    """A chain as its tool prints it.

    `policy`: None unless it is a base chain; `rules`: None for an unknown text;
    `counters`: packets and bytes, None for a rule without a counter; `policy_counters`:
    likewise, though iptables prints 0 where the kernel does not count.
    """

    policy: str | None
    rules: list[str | None]
    counters: list[tuple[int, int] | None]
    policy_counters: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TableText:
    """A table as the tool that made it prints it.

    `backend`: NFT or IPTABLES.  In a table of IPTABLES, chains that iptables did not make
    and rules that it does not print completely have the text that nft prints.
    """

    backend: Backend
    chains: dict[str, ChainText]


def read(snapshot: Snapshot, note: Callable[[str], None] | None = None) -> dict[_Key, TableText]:
    """Returns all tables of the snapshot, except those that flip, by NFPROTO_* and name.

    `note` is called with one line if nft is missing, which leaves texts unknown; without
    `note` that is an error.  Raises Changed; CaptureError if a command fails or is missing;
    OSError.
    """
    found, same = _read_with(snapshot, note)
    if not same:
        raise Changed
    return found


def read_unchanged(
    snapshot: Snapshot, note: Callable[[str], None] | None = None
) -> tuple[dict[_Key, TableText], bool]:
    """Returns, as `read`, the chains that have not changed since the snapshot.

    Also returns whether nothing has changed.  Raises Changed if commands fail meanwhile.
    """
    return _read_with(snapshot, note)


def _read_with(
    snapshot: Snapshot, note: Callable[[str], None] | None
) -> tuple[dict[_Key, TableText], bool]:
    by_table: dict[_Key, dict[str, ChainInfo]] = {
        key: {} for key in snapshot.tables if not key[1].startswith(_OWN)
    }
    if not by_table:
        return {}, True
    for (family, table, chain), info in snapshot.chains.items():
        if (family, table) in by_table:
            by_table[family, table][chain] = info
    with contextlib.closing(Dump()) as dump:
        try:
            found = _read(dump, snapshot, by_table, note)
        except (CaptureError, iptables_save.Unreadable) as error:
            # A change during the read makes commands fail.
            if dump.genid() != snapshot.genid:
                raise Changed from error
            if isinstance(error, iptables_save.Unreadable):
                raise CaptureError(str(error)) from error
            raise
        if dump.genid() == snapshot.genid:
            return found, True
        # Handles are not used twice, and contents are compared: a chain that has the same
        # rules before and after had them all the time.
        after = dump.now()
    unchanged: dict[_Key, TableText] = {}
    for key, text in found.items():
        if after.tables.get(key) == snapshot.tables[key]:
            chains = {
                name: chain
                for name, chain in text.chains.items()
                if after.chains.get((*key, name)) == snapshot.chains[(*key, name)]
            }
            unchanged[key] = TableText(text.backend, chains)
    return unchanged, False


def _read(
    dump: Dump,
    snapshot: Snapshot,
    by_table: dict[_Key, dict[str, ChainInfo]],
    note: Callable[[str], None] | None,
) -> dict[_Key, TableText]:
    """Returns the tables' chains whose rules are those of the snapshot, as far as is known."""
    with ThreadPoolExecutor(1, "ipttrace-rules") as beside:
        # The kernel's list, while the commands run.
        listing = beside.submit(dump.rules, interrupted=True)
        printed, failed = _saved(set(by_table))
        kernel = listing.result()
    policies = dump.policy_counters()
    changed = dump.genid() != snapshot.genid
    if changed and failed:
        raise Changed
    saved = {
        key: _agreeing(key[1], by_table[key], table)
        for key, table in printed.items()
        if key in by_table
    }
    counters: dict[_Chain, list[tuple[int, int] | None]] = {}
    handles: dict[_Chain, list[int]] = {}
    native: dict[_Chain, set[int]] = {}  # handles of the rules that only nft prints completely
    for family, table, chain, handle, expressions in kernel:
        place = (family, table, chain)
        handles.setdefault(place, []).append(handle)
        counters.setdefault(place, []).append(counter(expressions))
        own = saved.get((family, table))
        if own is not None and chain in own:
            only_nft = not iptables_prints_all(family, expressions)
        else:
            # A chain of iptables that has changed meanwhile is read again soon.
            only_nft = own is None or not changed
        if only_nft:
            native.setdefault(place, set()).add(handle)
    listed: nft_listing.Texts = {}
    if any(place[:2] in by_table for place in native):
        path = _command("nft")
        if path is not None:
            listed = nft_listing.parse(_listing(path), snapshot)
        elif note is None:
            raise CaptureError(_MISSING)
        else:
            note(_MISSING)
    found = {}
    for key, chains in by_table.items():
        own = saved.get(key)
        texts = {}
        for name, info in chains.items():
            if handles.get((*key, name), []) != info.handles:
                continue  # it has changed
            rules = listed.get((*key, name)) or [None] * len(info.handles)
            policy = None if info.hook is None else POLICIES.get(info.policy or 0, "accept")
            if own is not None and name in own:
                policy = own[name].policy
                by_nft = native.get((*key, name), set())
                rules = [
                    listed_text if handle in by_nft else _escaped(printed)
                    for handle, listed_text, printed in zip(
                        info.handles, rules, own[name].rules, strict=True
                    )
                ]
            place = (*key, name)
            texts[name] = ChainText(policy, rules, counters.get(place, []), policies.get(place))
        found[key] = TableText(IPTABLES if own else NFT, texts)
    return found


def _agreeing(
    table: str, chains: dict[str, ChainInfo], saved: iptables_save.Table
) -> iptables_save.Table:
    """Returns the chains that iptables made and printed with as many rules as the kernel has."""
    built_in = _BUILT_IN.get(table, {})
    found: iptables_save.Table = {}
    for name, info in chains.items():
        chain = saved.get(name)
        hook = None if info.hook is None else (info.hook, info.priority)
        if (
            chain is not None
            and len(chain.rules) == len(info.handles)
            and built_in.get(name) == hook
            and (hook is None) == (chain.policy is None)
        ):
            found[name] = chain
    return found


def _saved(wanted: set[_Key]) -> tuple[dict[_Key, iptables_save.Table], bool]:
    """Returns the tables that iptables-nft and ip6tables-nft consider their own.

    Also returns whether a command failed: nft prints its rules too.
    """
    found: dict[_Key, iptables_save.Table] = {}
    failed = False
    for family, name in _SAVE.items():
        if not any((family, table) in wanted for table in _BUILT_IN):
            continue
        path = _command(name)
        if path is None:
            continue
        try:
            printed = iptables_save.run([path, "-c"]).decode("utf-8", "surrogateescape")
            tables = iptables_save.parse(printed)
        except (CaptureError, iptables_save.Unreadable):
            failed = True
            continue
        found.update({(family, table): chains for table, chains in tables.items()})
    return found, failed


def _listing(path: str) -> str:
    """Returns what nft lists, without counters' values and the elements of named sets."""
    argv = [path, "-a", "-s", "-t", "list", "ruleset"]
    printed = iptables_save.run(argv)
    if _NO_ELEMENTS.search(printed):
        # Some versions omit the elements of anonymous sets as well, which are part of a rule.
        printed = iptables_save.run([word for word in argv if word != "-t"])
    return printed.decode("utf-8", "surrogateescape")


def _command(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PATH)


def _escaped(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
