# SPDX-License-Identifier: GPL-2.0-only
"""What the programs look up gives the rule that asking one after the other gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ipttrace.guard import conditions, layout
from ipttrace.guard.policy import Call, compile_policy, first_rule
from ipttrace.guard.rules import RuleError, parse

ADDRESSES = (
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "192.0.2.7",
    "2001:db8::1",
    "::1",
    "255.255.255.255",
)
NETWORKS = (*ADDRESSES, "10.0.0.0/24", "10.0.0.0/8", "10.0.0.2-10.0.1.0", "2001:db8::/32", "any")
PORTS = ("1", "22", "80", "80-90", "0-65535", "65535", "1,22,85")
COMMS = ("nginx", "curl", "a")
CONTAINERS = {"aaaa": [7, 9], "bbbb": [8]}


def a_rule(some: random.Random) -> str:
    call = some.choice(("connect", "accept", "receive"))
    words = [some.choice(("deny", "allow")), call]
    peer = {"connect": "to"}.get(call, "from")
    has_peer = some.random() < 0.6
    if has_peer:
        words += [peer, ",".join(some.sample(NETWORKS, some.randint(1, 2)))]
        if some.random() < 0.4:
            words += ["port", some.choice(PORTS)]
    if some.random() < 0.3:
        words += ["on", some.choice(NETWORKS)]
    elif some.random() < 0.3:
        words += ["on", "port", some.choice(PORTS)]
    protocol = some.choice(("", "", "tcp", "udp"))
    words += [protocol] if protocol else []
    if some.random() < 0.3:
        words += ["uid", some.choice(("0", "1000-1999", "65534"))]
    knows_comm = call == "connect" or (call == "accept" and not has_peer)
    if some.random() < 0.2 and (knows_comm or (call == "receive" and protocol == "tcp")):
        words += ["comm", ",".join(some.sample(COMMS, some.randint(1, 2)))]
    if some.random() < 0.2:
        words += ["container", some.choice((*CONTAINERS, "aaaa,bbbb", "cccc"))]
    return " ".join(words)


def a_call(some: random.Random) -> Call:
    kind = some.randrange(4)
    accepting = kind == layout.ACCEPT
    return Call(
        call=kind,
        protocol=some.choice(("tcp", "udp", "icmp")),
        remote=0 if accepting else conditions.number_of(some.choice(ADDRESSES)),
        remote_port=0 if accepting else some.choice((0, 1, 22, 80, 85, 90, 91, 65535)),
        local=some.choice((0, *map(conditions.number_of, ADDRESSES))),
        local_port=some.choice((0, 22, 80, 85, 65535)),
        uid=some.choice((0, 1000, 1500, 1999, 2000, 65534)),
        comm=some.choice((0, *(conditions.comm(one)[0][0] for one in COMMS))),
        containers=some.choice(((), ("aaaa",), ("bbbb",))),
    )


def looked_up(policy: Any, call: Call) -> int | None:
    """As bpf/guard.bpf.c does it."""
    protocol = {"tcp": layout.TCP, "udp": layout.UDP}.get(call.protocol, layout.OTHER)
    bits = policy["call"][call.call] & policy["protocol"][protocol]
    for name, count in (("remote", "remotes"), ("local", "locals"), ("comm", "comms")):
        spans = policy[name]
        begins = [
            int(high) << 64 | int(low) for high, low in spans["from"][: policy[count]].tolist()
        ]
        assert begins == sorted(set(begins))
        assert begins[0] == 0
        at = sum(begin <= getattr(call, name) for begin in begins) - 1
        bits = bits & spans["rules"][at]
        if name == "remote" and call.remote >> 32 == 0xFFFF:
            quick = int(policy["four"][call.remote >> 16 & 0xFFFF])
            assert quick in (at, layout.SEVERAL)
        if name == "remote":
            words = int(policy["remote_words"][at] & policy["words"][call.call])
            assert all(words >> at & 1 for at in np.flatnonzero(bits).tolist())
    for name in ("remote_port", "local_port", "uid"):
        begins = policy[name]["from"][: policy[f"{name}s"]].tolist()
        at = sum(begin <= getattr(call, name) for begin in begins) - 1
        bits = bits & policy[name]["rules"][at]
    if policy["containers"]:
        some = policy["any_container"].copy()
        for cgroup in (one for name in call.containers for one in CONTAINERS[name][:1]):
            cgroups = policy["cgroup"][: policy["containers"]].tolist()
            if cgroup in cgroups:
                some |= policy["of_cgroup"][cgroups.index(cgroup)]
        bits = bits & some
    numbers = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
    return int(numbers[0]) if len(numbers) else None


@pytest.mark.parametrize("seed", range(8))
def test_the_first_rule_that_is_met_is_found(seed: int) -> None:
    # GIVEN any rules
    some = random.Random(seed)
    rules = parse("\n".join(a_rule(some) for _ in range(some.choice((1, 5, 70)))))
    (policy,) = np.frombuffer(compile_policy(rules, CONTAINERS), layout.POLICY_DTYPE)
    found = set()
    for _ in range(150):
        call = a_call(some)
        # WHEN a call is looked up, THEN the rule is that of asking all in order
        expected = first_rule(rules, call)
        assert looked_up(policy, call) == expected, (call, rules)
        found.add(expected)
        if expected is not None:
            assert policy["calls"] >> call.call & 1
            is_set = int(policy["allow"][expected >> 6]) >> (expected & 63) & 1
            assert bool(is_set) != rules[expected].denies
    assert len(found) > 1 or len(rules) < 70


def test_who_is_allowed_to_connect_is_not_denied_in_accept() -> None:
    rules = parse("allow accept from 10.0.0.1; deny accept")
    peer, other = map(conditions.number_of, ("10.0.0.1", "10.0.0.2"))
    assert first_rule(rules, Call(layout.ARRIVAL, remote=peer)) == 0
    assert first_rule(rules, Call(layout.ARRIVAL, remote=other)) == 1
    assert first_rule(rules, Call(layout.ACCEPT)) == 0
    # WHEN nobody is allowed, THEN accept() itself fails, and connections are let in
    rules = parse("deny accept")
    assert first_rule(rules, Call(layout.ACCEPT)) == 0
    assert first_rule(rules, Call(layout.ARRIVAL, remote=other)) is None


def test_more_addresses_than_there_is_room_for_are_refused() -> None:
    one_each = "\n".join(f"deny connect to 10.0.{n >> 7}.{(n & 127) * 2}" for n in range(1000))
    compile_policy(parse(one_each), {})
    listed = ",".join(f"10.{n >> 7}.{n & 127}.1" for n in range(1100))
    with pytest.raises(RuleError, match="1,024 different values of remote"):
        compile_policy(parse(f"deny connect to {listed}"), {})
    many = {"aaaa": list(range(1, 258))}
    with pytest.raises(RuleError, match="256 running containers"):
        compile_policy(parse("deny connect container aaaa"), many)


def test_a_container_that_does_not_run_denies_nobody() -> None:
    rules = parse("deny connect container aaaa")
    (policy,) = np.frombuffer(compile_policy(rules, {"aaaa": []}), layout.POLICY_DTYPE)
    assert looked_up(policy, Call(layout.CONNECT)) is None
