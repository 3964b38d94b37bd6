# SPDX-License-Identifier: GPL-2.0-only
"""A denied call is one stage, with the guard's rule, whichever of both ways is faster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ipttrace.capture.sockets.denials import Denials
from ipttrace.capture.sockets.guards import CHECK_COMM, CHECK_PORT
from ipttrace.guard.programs import unused_name
from ipttrace.stream import record
from ipttrace.stream.record import SOCKET_DTYPE, Records

NOW = 10_000_000_000
LATER = NOW + 5_000_000_001
CONNECT = {
    "mono": NOW - 1_000,
    "cgroup": 7,
    "denied": True,
    "call": "connect",
    "protocol": "tcp",
    "remote_ip": "192.0.2.7",
    "remote_port": 80,
    "local_ip": None,
    "local_port": None,
    "netns": 1,
    "pid": 5,
    "tid": 6,
    "comm": "curl",
    "uid": 1000,
    "rule": 3,
    "rule_text": "deny connect to 192.0.2.7",
}
RECEIVE = CONNECT | {
    "call": "receive",
    "protocol": "udp",
    "remote_ip": "2001:db8::1",
    "remote_port": 53,
    "local_ip": "2001:db8::2",
    "local_port": 9,
    "pid": None,
    "tid": None,
    "comm": None,
}
RULE = {"call": "connect", "rule": 3, "rule_text": "deny connect to 192.0.2.7", "dry": False}


def stages(*about: dict[str, Any]) -> Records:
    found = np.zeros(len(about), SOCKET_DTYPE)
    for at, values in enumerate(about):
        for name, value in values.items():
            found[name][at] = value
    return found


DENIED = {"stage": record.DENIED, "time": NOW, "tid": 6, "pid": 5, "remote_port": 80, "sk": 9}
NOTHING = stages()


def test_the_stage_and_the_line_are_one() -> None:
    for first, second in (
        ((stages(DENIED), []), (NOTHING, [CONNECT])),
        ((NOTHING, [CONNECT]), (stages(DENIED), [])),
    ):
        waiting = Denials()
        found, rules = waiting.merge(*first, NOW, upto=0, last=False)
        assert (len(found), rules) == (0, {})
        found, rules = waiting.merge(*second, NOW, upto=0, last=False)
        assert (found["sk"].tolist(), rules) == ([9], {0: RULE})
        assert waiting.added == 0


def test_others_go_on_meanwhile() -> None:
    waiting = Denials()
    other = {"stage": record.CONNECTING, "time": NOW, "sk": 1}
    found, rules = waiting.merge(stages(DENIED, other), [CONNECT], NOW, upto=0, last=False)
    assert found["sk"].tolist() == [1, 9]
    assert list(rules) == [1]
    assert found.dtype == SOCKET_DTYPE


@pytest.mark.parametrize(("upto", "last"), [(NOW + 1, False), (0, True)])
def test_alone_each_is_a_stage_once_the_other_would_be_there(upto: int, last: bool) -> None:
    other = DENIED | {"tid": 8}
    waiting = Denials()
    assert not len(waiting.merge(stages(other), [CONNECT], NOW, upto=0, last=False)[0])
    found, rules = waiting.merge(NOTHING, [], NOW, upto=upto, last=last)
    assert found["tid"].tolist() == [8, 6]
    assert rules == {1: RULE}
    made = found[1]
    assert (made["stage"], made["family"], made["protocol"]) == (record.DENIED, 2, 6)
    assert (made["comm"], made["uid"], made["error"], made["cgroup"]) == (b"curl", 1000, 13, 7)
    assert bytes(made["remote"][:4]) == bytes([192, 0, 2, 7])
    assert waiting.added == 1


def test_without_a_guard_nothing_waits_and_for_one_that_is_stopped_a_while() -> None:
    assert len(Denials().merge(stages(DENIED), [], NOW, upto=None, last=False)[0]) == 1
    waiting = Denials()
    assert not len(waiting.merge(stages(DENIED), [], NOW, upto=0, last=False)[0])
    assert len(waiting.merge(NOTHING, [], LATER, upto=0, last=False)[0]) == 1


def test_very_many_do_not_wait() -> None:
    many = stages(*(DENIED | {"time": NOW + number} for number in range(5000)))
    found, _ = Denials().merge(many, [], NOW, upto=0, last=False)
    assert found["time"].tolist() == list(range(NOW, NOW + 904))


def test_calls_without_a_stage_come_with_the_next_stages() -> None:
    dry = CONNECT | {"denied": False}
    waiting = Denials()
    assert not len(waiting.merge(NOTHING, [RECEIVE, dry], NOW, upto=0, last=False)[0])
    found, rules = waiting.merge(NOTHING, [], NOW, upto=0, last=False)
    assert found["local_port"].tolist() == [9, 0]
    assert found["family"].tolist() == [10, 2]
    assert [rules[at]["dry"] for at in range(2)] == [False, True]
    assert found["flags"].tolist() == [
        record.SK_F_DENIED,
        record.SK_F_DENIED | record.SK_F_PROCESS,
    ]


def test_a_call_of_another_time_is_another_one() -> None:
    waiting = Denials()
    early = CONNECT | {"mono": NOW - 100_000_000}
    found, _ = waiting.merge(stages(DENIED), [early], NOW, upto=0, last=False)
    assert not len(found)
    found, rules = waiting.merge(NOTHING, [CONNECT], NOW, upto=0, last=True)
    assert len(found) == 2
    assert sorted(rules) == [0, 1]


def test_of_one_namespace_and_what_a_guard_has_lost() -> None:
    waiting = Denials(only_netns=2)
    found, _ = waiting.merge(NOTHING, [CONNECT, RECEIVE, {"lost": 4}], NOW, upto=0, last=True)
    assert (len(found), waiting.lost) == (0, 4)


def test_the_call_by_which_a_guard_checks_the_kernel_is_none() -> None:
    waiting = Denials()
    name = unused_name().encode()
    assert CHECK_COMM.fullmatch(name)
    check = DENIED | {"comm": name, "remote_port": CHECK_PORT}
    found, _ = waiting.merge(stages(check, DENIED), [], NOW, upto=0, last=True)
    assert (found["sk"].tolist(), waiting.checks) == ([9], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mono": -1},
        {"mono": "1"},
        {"netns": 1 << 32},
        {"remote_ip": "no"},
        {"remote_port": 1 << 16},
        {"protocol": "sctp"},
        {"protocol": []},
        {"call": "listen"},
        {"call": []},
        {"rule": True},
        {"rule_text": 5},
        {"comm": 5},
        {"tid": None},
    ],
)
def test_lines_that_no_guard_writes_are_left_out(wrong: dict[str, Any]) -> None:
    found, rules = Denials().merge(NOTHING, [CONNECT | wrong], NOW, upto=0, last=True)
    assert (len(found), rules) == (0, {})
    assert not len(Denials().merge(NOTHING, [{}, {"lost": "x"}], NOW, upto=0, last=True)[0])
