# SPDX-License-Identifier: GPL-2.0-only
"""Denials as lines and as JSON: what is not known is empty, and all is printable."""

from __future__ import annotations

from typing import Any

import numpy as np

from ipttrace.capture.containers import Container
from ipttrace.guard import layout, words
from ipttrace.guard.rules import parse


def event(**fields: Any) -> Any:
    one = np.zeros(1, layout.EVENT_DTYPE)
    one["remote"]["low"] = one["local"]["low"] = 0xFFFF << 32
    one["remote"]["low"] |= 0xC0000207
    one["protocol"] = 6
    one["remote_port"] = 443
    for name, value in fields.items():
        one[name] = value
    return one[0]


def test_a_denied_process_is_told_with_its_rule() -> None:
    (rule,) = parse("deny connect to 192.0.2.7")
    one = event(flags=layout.PROCESS, pid=12, tid=13, uid=1000, comm=b"cu\x1brl", rule=1)
    found = words.as_json(one, rule, Container("docker", "3f2a" + "0" * 60), 10**18)
    assert (found["denied"], found["remote_ip"], found["local_ip"]) == (True, "192.0.2.7", None)
    line = words.line(found)
    _, *rest = line.split("  ")
    assert rest == [
        "DENIED", "connect", "tcp", "* > 192.0.2.7:443",
        "cu\\x1brl (pid 12, uid 1000) in docker 3f2a00000000", "rule 1: deny connect to 192.0.2.7",
    ]  # fmt: skip


def test_what_is_not_known_is_empty() -> None:
    # GIVEN an accept() in a dry run, of a rule that is forgotten
    one = event(call=layout.ACCEPT, flags=layout.DRY, local_port=80, rule=7, protocol=132)
    found = words.as_json(one, None, Container(), 0)
    for name in ("remote_ip", "remote_port", "pid", "comm", "container", "unit", "rule_text"):
        assert found[name] is None
    assert "  WOULD DENY  accept  132  * > *:80  uid 0  rule 7" in words.line(found)
    six = event(call=layout.ARRIVAL)
    six["remote"]["high"] = 0x20010DB8 << 32
    six["remote"]["low"] = 1
    assert "[2001:db8::1]:443 > *" in words.line(words.as_json(six, None, Container(), 0))
