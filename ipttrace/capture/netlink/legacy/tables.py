# SPDX-License-Identifier: GPL-2.0-only
"""The rules of a namespace's legacy tables, and what they make of a logged event.

Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import (
    ACCEPT_OR_DROP,
    POLICY,
    RETURN,
    RULE,
    UNKNOWN_VERDICT,
    VERDICT_CONTINUE,
)
from ipttrace.capture.netlink.nft.rewrites import target_rewrites
from ipttrace.capture.xtables import Chains
from ipttrace.netfilter import ACCEPT, DROP, IP_VERSIONS, NAT_PRIORITIES, QUEUE

# linux/netfilter_ipv4.h and netfilter_ipv6.h: by table; of nat see NAT_PRIORITIES.
_PRIORITIES: Final = {b"raw": -300, b"mangle": -150, b"filter": 0, b"security": 50}

# What targets return (net/netfilter, net/ipv4/netfilter, net/ipv6/netfilter).  A target
# that continues may drop a packet as well: no event follows then, and the verdict is
# unknown (ECN, TCPMSS, TCPOPTSTRIP, of malformed packets; SNPT, DNPT, of addresses that
# cannot be mapped; DSCP, TOS, TTL, HL, without memory; SYNPROXY also steals packets).
# SNAT, DNAT and NETMAP find a tuple always, and drop only without memory for a helper.
_VERDICTS = {
    "ACCEPT": ACCEPT,
    "DROP": DROP,
    "REJECT": DROP,
    "QUEUE": QUEUE,
    "NFQUEUE": QUEUE,
    "DNAT": ACCEPT,
    "SNAT": ACCEPT,
    "NETMAP": ACCEPT,
    "MASQUERADE": ACCEPT_OR_DROP,  # without an address for the device
    "REDIRECT": ACCEPT_OR_DROP,  # likewise
    "TPROXY": ACCEPT_OR_DROP,  # without a listener
}
"""Targets to verdicts: NF_*, VERDICT_CONTINUE or ACCEPT_OR_DROP."""
_VERDICTS |= dict.fromkeys(
    (
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DNPT", "DSCP", "ECN"),
        *("HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK", "NFLOG", "NOTRACK", "RATEEST"),
        *("SECMARK", "SET", "SNPT", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE"),
        *("TTL", "ULOG"),
    ),
    VERDICT_CONTINUE,
)
# Targets that leave a packet's mark alone.
_KEEP_MARK: Final = _VERDICTS.keys() - {"CONNMARK", "HMARK", "MARK", "SET", "TPROXY"} | {"RETURN"}

_MOVING: Final = frozenset({"DNPT", "SNPT"})

Key = tuple[int, str]  # IP version, table
Tables = dict[Key, Chains]


def priorities(tables: Sequence[bytes], index: Array, hooks: Array) -> Array:
    """The priorities of tables' chains at hooks, int64, shape (n,); 0 for unknown tables.

    `index`: into `tables`, shape (n,); `hooks`: NF_INET_*, shape (n,).
    """
    pairs = index.astype(np.int64) << 8 | hooks.astype(np.int64)
    unique, inverse = np.unique(pairs, return_inverse=True)
    found = [_priority(tables[pair >> 8], pair & 0xFF) for pair in unique.tolist()]
    return np.array(found, np.int64)[inverse]


def _priority(table: bytes, hook: int) -> int:
    return NAT_PRIORITIES.get(hook, 0) if table == b"nat" else _PRIORITIES.get(table, 0)


class Outcome(NamedTuple):
    """`match`: index into record.MATCHES.

    `verdict`: NF_*, VERDICT_CONTINUE, ACCEPT_OR_DROP, UNKNOWN_VERDICT; `moves`: the target
    gives the packet other addresses and continues; `copies`: it sends a copy and continues;
    `known`: are the chain's rules?  If not, `match` is as logged.
    """

    match: int
    verdict: int
    moves: bool = False
    copies: bool = False
    known: bool = True


def may_drop_last(tables: Tables) -> bool:
    """Whether a rule in the last chain that packets meet may end with ACCEPT or DROP."""
    return any(
        "MASQUERADE" in chain.targets
        for (_, name), table in tables.items()
        if name == "nat"
        for chain in table.values()
    )


def may_set_marks(tables: Tables) -> bool:
    """Whether a rule in `tables` may change a packet's mark."""
    return any(
        not chain.targets <= _KEEP_MARK for table in tables.values() for chain in table.values()
    )


def rewrites(tables: Tables) -> int:
    """The bytes of packets that rules in `tables` may change, see nft.rewrites."""
    found = 0
    for (version, _), table in tables.items():
        for target in frozenset[str]().union(*(chain.targets for chain in table.values())):
            found |= target_rewrites(target, version)
    return found


def outcome(
    tables: Tables, family: int, table: str, chain: str, match: int, number: int
) -> Outcome:
    """What a logged event means by the rules in `tables`.

    `family`: NFPROTO_*; `match`: as logged.  The kernel logs every unconditional verdict
    as a policy or a return, `-j RETURN` too: an event with the number of a rule is a hit
    of that rule.
    """
    chains = tables.get((IP_VERSIONS.get(family, 0), table), {})
    rules = chains.get(chain)
    if rules is None or not 0 < number <= len(rules.contents):
        if match == RETURN:
            return Outcome(match, VERDICT_CONTINUE, known=rules is not None)
        if match == POLICY and rules is not None and rules.policy is not None:
            return Outcome(match, _VERDICTS.get(rules.policy, UNKNOWN_VERDICT))
        return Outcome(match, UNKNOWN_VERDICT)
    target = rules.target(number)
    if target is None:
        return Outcome(RULE, VERDICT_CONTINUE)
    if target.option == "-g" or target.name == "RETURN" or target.name in chains:
        return Outcome(RULE, VERDICT_CONTINUE)
    verdict = _VERDICTS.get(target.name, UNKNOWN_VERDICT)
    return Outcome(RULE, verdict, target.name in _MOVING, target.name == "TEE")
