# SPDX-License-Identifier: GPL-2.0-only
"""What the guard has denied, as lines and as JSON objects.  Must not do I/O."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final

from ipttrace.capture.containers import Container
from ipttrace.guard import layout
from ipttrace.guard.conditions import text_of
from ipttrace.guard.rules import Rule
from ipttrace.text import escape

_CALLS: Final = {
    layout.CONNECT: "connect",
    layout.ACCEPT: "accept",
    layout.ARRIVAL: "accept",
    layout.RECEIVE: "receive",
}
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp6"}


def as_json(event: Any, rule: Rule | None, container: Container, offset: int) -> dict[str, Any]:
    """One event (EVENT_DTYPE); what is not known is None.

    `offset`: of the wall clock from the kernel's, ns.  local_ip is None where the socket has none
    as yet.
    """
    of_process = bool(event["flags"] & layout.PROCESS)
    remote, local = (
        (int(event[end]["high"]) << 64) | int(event[end]["low"]) for end in ("remote", "local")
    )
    accepting = event["call"] == layout.ACCEPT
    unset = (0, 0xFFFF << 32)
    return {
        "time": _time(int(event["time"]) + offset).isoformat(),
        "denied": not event["flags"] & layout.DRY,
        "call": _CALLS.get(int(event["call"]), ""),
        "protocol": _PROTOCOLS.get(int(event["protocol"]), str(int(event["protocol"]))),
        "remote_ip": None if accepting else text_of(remote),
        "remote_port": None if accepting else int(event["remote_port"]),
        "local_ip": None if local in unset else text_of(local),
        "local_port": int(event["local_port"]) or None,
        "netns": int(event["netns"]),
        "pid": int(event["pid"]) if of_process else None,
        "tid": int(event["tid"]) if of_process else None,
        "comm": bytes(event["comm"]).decode("utf-8", "replace") if of_process else None,
        "uid": int(event["uid"]),
        "runtime": container.runtime or None,
        "container": container.id or None,
        "pod": container.pod or None,
        "unit": container.unit or None,
        "rule": int(event["rule"]),
        "rule_text": None if rule is None else rule.text,
    }


def line(found: dict[str, Any]) -> str:
    """One object of `as_json` as a line."""
    when = datetime.datetime.fromisoformat(found["time"]).astimezone()
    verdict = "DENIED" if found["denied"] else "WOULD DENY"
    remote = _end(found["remote_ip"], found["remote_port"])
    local = _end(found["local_ip"], found["local_port"])
    ends = f"{local} > {remote}" if found["call"] == "connect" else f"{remote} > {local}"
    who = f"uid {found['uid']}"
    if found["pid"] is not None:
        who = f"{escape(found['comm'])} (pid {found['pid']}, {who})"
    for name in ("container", "pod", "unit"):
        if value := found[name]:
            short = value[:12] if name == "container" else value
            who += f" in {found['runtime'] or name} {escape(short)}"
            break
    text = found["rule_text"]
    rule = f"rule {found['rule']}" + ("" if text is None else f": {escape(text)}")
    parts = (when.strftime("%H:%M:%S.%f"), verdict, found["call"], found["protocol"], ends, who)
    return "  ".join((*parts, rule))


def _end(ip: str | None, port: int | None) -> str:
    shown = "*" if ip is None else f"[{ip}]" if ":" in ip else ip
    return shown if port is None else f"{shown}:{port}"


def _time(ns: int) -> datetime.datetime:
    seconds, rest = divmod(ns, 1_000_000_000)
    whole = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return whole.replace(microsecond=rest // 1000)


def rules_line(rules: Sequence[Rule], *, dry: bool) -> str:
    """That these rules apply."""
    count = "1 rule applies" if len(rules) == 1 else f"{len(rules):,} rules apply"
    return count + ("; nothing is denied (--dry-run)" if dry else "")
