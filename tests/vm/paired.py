# SPDX-License-Identifier: GPL-2.0-only
"""Two namespaces with a wire between them, and nft's counters of their rules."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator

from ipttrace.lab.network.ns import run_in
from ipttrace.trace.row import Row
from tests.vm.plain import Plain

NEAR = {4: "10.78.0.1", 6: "fd78::1"}
FAR = {4: "10.78.0.2", 6: "fd78::2"}

Hits = Counter[tuple[str, str, int]]  # by table, chain and rule number


@contextlib.contextmanager
def paired() -> Iterator[tuple[Plain, Plain]]:
    """Namespaces with the addresses NEAR and FAR on a device eth0."""
    with Plain("ipt-near") as near, Plain("ipt-far") as far:
        peer = ("type", "veth", "peer", "name", "eth0", "netns", far.name)
        near.run("ip", "link", "add", "eth0", *peer)
        for one, addresses in ((near, NEAR), (far, FAR)):
            one.run("ip", "address", "add", f"{addresses[4]}/24", "dev", "eth0")
            one.run("ip", "address", "add", f"{addresses[6]}/64", "dev", "eth0", "nodad")
            one.run("ip", "link", "set", "eth0", "up")
        yield near, far


def load(plain: Plain, rules: str) -> None:
    """Loads rules in nft's language."""
    run_in(plain.name, ["nft", "-f", "-"], text=rules)


def counted(plain: Plain) -> Hits:
    """What the rules that have a counter have counted, those with 0 too."""
    numbers: Counter[tuple[str, str]] = Counter()
    found: Hits = Counter()
    for item in json.loads(plain.run("nft", "-j", "list", "ruleset").stdout)["nftables"]:
        if rule := item.get("rule"):
            where = rule["table"], rule["chain"]
            numbers[where] += 1
            for part in rule["expr"]:
                if "counter" in part:
                    found[*where, numbers[where]] = part["counter"]["packets"]
    return found


def hits(rows: list[Row], rules: Hits) -> Hits:
    """How often rows have hit these rules."""
    found: Hits = Counter(dict.fromkeys(rules, 0))
    for row in rows:
        for step in row.path:
            if step.match == "rule" and (row.table, step.chain, step.rulenum or 0) in rules:
                found[row.table, step.chain, step.rulenum or 0] += 1
    return found
