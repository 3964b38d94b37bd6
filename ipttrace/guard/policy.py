# SPDX-License-Identifier: GPL-2.0-only
"""Rules as the BPF programs look them up (bpf/guard.h), and the same decision in Python.

Must not do I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipttrace.guard import layout
from ipttrace.guard.conditions import Ranges
from ipttrace.guard.rules import Rule, RuleError

Bits = npt.NDArray[np.uint64]

_PROTOCOLS: Final = {"tcp": layout.TCP, "udp": layout.UDP}
_VALUES: Final = (("remote", "remotes"), ("local", "locals"), ("comm", "comms"))
_NUMBERS: Final = (
    ("remote_port", "remote_ports"),
    ("local_port", "local_ports"),
    ("uid", "uids"),
)
_LOW: Final = (1 << 64) - 1


def compile_policy(
    rules: Sequence[Rule],
    cgroups: Mapping[str, Sequence[int]],
    *,
    version: int = 1,
    dry: bool = False,
    arriving: bool = False,
) -> bytes:
    """struct ipttrace_guard_policy of these rules.

    `cgroups`: the numbers of the cgroups of each container that rules name; `arriving`: accept
    and receive are decided only as connections and data arrive.  Raises RuleError if the rules
    differ in more than the programs have room for, or ask what is not known then.
    """
    if arriving:
        _check_arriving(rules)
    policy = np.zeros((), layout.POLICY_DTYPE)
    policy["version"] = version
    policy["rules"] = len(rules)
    policy["dry"] = dry
    for number, rule in enumerate(rules):
        if not rule.denies:
            _set(policy["allow"], number)
        for call in calls_of(rules, number, arriving=arriving):
            _set(policy["call"][call], number)
            policy["calls"] |= np.uint32(1 << call)
        for protocol in range(3):
            if rule.protocol is None or _PROTOCOLS[rule.protocol] == protocol:
                _set(policy["protocol"][protocol], number)
    for name, count in (*_VALUES, *_NUMBERS):
        _fill_spans(policy, name, count, rules)
    _fill_containers(policy, rules, cgroups)
    # Most calls meet no rule: that is seen by these.
    word = np.uint16(1) << np.arange(layout.WORDS, dtype=np.uint16)
    policy["words"] = ((policy["call"] != 0) * word).sum(axis=1)
    some = int(policy["remotes"])
    policy["remote_words"][:some] = ((policy["remote"]["rules"][:some] != 0) * word).sum(axis=1)
    policy["remote_words"][some:] = policy["remote_words"][some - 1]
    policy["four"] = _spans_of_networks(policy["remote"]["from"][:some])
    return policy.tobytes()


def _check_arriving(rules: Sequence[Rule]) -> None:
    for rule in rules:
        if rule.comm is not None and rule.call != "connect":
            message = f"comm is not known of {rule.call} here"
            reason = "bpf is not among the security modules"
            raise RuleError(f"{message}: {reason}", rule.text, rule.text.find("comm"))


def calls_of(rules: Sequence[Rule], number: int, *, arriving: bool = False) -> Iterable[int]:
    """The calls for which this rule is asked (layout.CONNECT …).

    Who connects is known when a connection arrives, who accepts when a process does.  So a rule
    without `from` is of accept(); behind one that allows some peers it is also of all others'
    connections as they arrive, and those that have arrived are not denied in accept().
    """
    rule = rules[number]
    if rule.call == "connect":
        return [layout.CONNECT]
    if rule.call == "receive":
        return [layout.RECEIVE]
    if arriving:
        return [layout.ARRIVAL]
    if _has_peer(rule):
        return [layout.ARRIVAL] if rule.denies else [layout.ARRIVAL, layout.ACCEPT]
    some_allowed = any(
        one.call == "accept" and not one.denies and _has_peer(one) for one in rules[:number]
    )
    if some_allowed and rule.comm is None:
        return [layout.ARRIVAL, layout.ACCEPT]
    return [layout.ACCEPT]


def _has_peer(rule: Rule) -> bool:
    return rule.remote is not None or rule.remote_port is not None


def _set(bits: Bits, number: int) -> None:
    bits[number >> 6] |= np.uint64(1 << (number & 63))


def _ranges(rule: Rule, name: str) -> Ranges | None:
    found: Ranges | None = getattr(rule, name)
    # In accept() the peer is not known: it is 0 there.
    if found is not None and name.startswith("remote") and rule.call == "accept":
        return found if rule.denies else (*found, (0, 0))
    return found


def _fill_spans(policy: Any, name: str, count: str, rules: Sequence[Rule]) -> None:
    """Cuts the values of a condition where some rule's begin or end."""
    numbers = name in dict(_NUMBERS)
    most = 1 << (32 if numbers else 128)
    edges = {0}
    for rule in rules:
        for first, last in _ranges(rule, name) or ():
            edges |= {first, last + 1}
    begins = sorted(edges - {most})
    if len(begins) > layout.SPANS:
        what = name.replace("_", " ").replace("comm", "process name")
        raise RuleError(
            f"the rules have more than {layout.SPANS // 2:,} different values of {what}"
        )
    policy[count] = len(begins)
    spans = policy[name]
    if numbers:
        spans["from"] = most - 1
        spans["from"][: len(begins)] = begins
    else:
        spans["from"]["high"] = spans["from"]["low"] = _LOW
        spans["from"]["high"][: len(begins)] = [one >> 64 for one in begins]
        spans["from"]["low"][: len(begins)] = [one & _LOW for one in begins]
    bits = spans["rules"]
    for number, rule in enumerate(rules):
        word, bit = number >> 6, np.uint64(1 << (number & 63))
        ranges = _ranges(rule, name)
        if ranges is None:
            bits[: len(begins), word] |= bit
            continue
        for first, last in ranges:
            begin, end = bisect_left(begins, first), bisect_left(begins, last + 1)
            bits[begin:end, word] |= bit
    bits[len(begins) :] = bits[len(begins) - 1]


def _spans_of_networks(begins: Any) -> npt.NDArray[np.uint16]:
    """The span in which each /16 of IPv4 lies; layout.SEVERAL if it lies in several.

    `begins`: of the spans.  Most addresses are then found without a search.
    """
    mapped = (begins["high"] == 0) & (begins["low"] >> np.uint64(32) == 0xFFFF)
    below = int(((begins["high"] == 0) & (begins["low"] < np.uint64(0xFFFF << 32))).sum())
    own = (begins["low"][mapped] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    first = np.arange(1 << 16) << 16
    spans = [
        below - 1 + np.searchsorted(own, addresses, side="right")
        for addresses in (first, first + 0xFFFF)
    ]
    return np.where(spans[0] == spans[1], spans[0], layout.SEVERAL).astype(np.uint16)


def _fill_containers(
    policy: Any, rules: Sequence[Rule], cgroups: Mapping[str, Sequence[int]]
) -> None:
    of_cgroup: dict[int, list[int]] = {}
    named = False
    for number, rule in enumerate(rules):
        if rule.containers is None:
            _set(policy["any_container"], number)
            continue
        named = True
        for container in rule.containers:
            for cgroup in cgroups.get(container, ()):
                of_cgroup.setdefault(cgroup, []).append(number)
    # Some number of none: where rules name containers of which none runs, they have to be asked.
    listed = sorted(of_cgroup.items()) or ([(0, [])] if named else [])
    if len(listed) > layout.CONTAINERS:
        raise RuleError(f"the rules are of more than {layout.CONTAINERS} running containers")
    policy["containers"] = len(listed)
    for at, (cgroup, numbers) in enumerate(listed):
        policy["cgroup"][at] = cgroup
        for number in numbers:
            _set(policy["of_cgroup"][at], number)


@dataclass(frozen=True, slots=True)
class Call:
    """A call to decide; addresses are numbers of 128 bits, `comm` as conditions.comm has it."""

    call: int  # layout.CONNECT …
    protocol: str = "tcp"
    remote: int = 0
    local: int = 0
    remote_port: int = 0
    local_port: int = 0
    uid: int = 0
    comm: int = 0
    containers: tuple[str, ...] = ()


def first_rule(rules: Sequence[Rule], call: Call) -> int | None:
    """The index of the first rule that the call meets, as the programs find it; None: none."""
    for number, rule in enumerate(rules):
        if call.call in calls_of(rules, number) and _meets(rule, call):
            return number
    return None


def _meets(rule: Rule, call: Call) -> bool:
    if rule.protocol is not None and rule.protocol != call.protocol:
        return False
    if rule.containers is not None and not set(rule.containers) & set(call.containers):
        return False
    for name in (*dict(_VALUES), *dict(_NUMBERS)):
        ranges = _ranges(rule, name)
        value = getattr(call, name)
        if ranges is not None and not any(first <= value <= last for first, last in ranges):
            return False
    return True
